"""`retain generate`: a stream of text or tokens, or a grid of images."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from retain.cli.arguments import Usage, take_run
from retain.config import SEEDS

if TYPE_CHECKING:
    from retain.inference.text import Piece
    from retain.runs.run import Run

KEPT = 100_000
"""Tokens that samples.json has: the last of a longer text, so that memory does not grow with the length."""


@dataclass(frozen=True)
class Generate:
    """Sample from the RNN alone, streaming; images become a PNG grid."""

    prompt: str = ""
    """What the RNN reads first: text, or for other data tokens separated by spaces.
    @FILE reads it from a UTF-8 file, - from stdin, without the last line break; @@TEXT is the prompt @TEXT."""
    length: int | None = None
    """Tokens to sample; None is 500, or whole images."""
    temperature: float = 1.0
    """0 takes the likeliest token."""
    top_k: int | None = None
    """Sample among the k likeliest tokens."""
    top_p: float | None = None
    """Sample among the fewest tokens whose probability reaches p."""
    stop: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Text only: it ends before this string, which is not printed. May be given several times."""
    seed: int = 0
    """The same seed gives the same samples; with another count, others."""
    count: int | None = None
    """How many to sample side by side; None is 1, of images 32.
    Several texts are printed when all have ended, each after a line '--- 1 of N ---'."""
    complete: int | None = None
    """Images only: complete the lower half of this many images of the test split."""
    images: tuple[str, ...] = ()
    """Images only: complete the lower half of these image files."""
    out: str | None = None
    """Images only: the PNG; None is samples.png, or completed.png, in the run folder."""
    compile: bool = False
    """For long texts: compile the step first, which takes a minute, and then costs less for every token."""
    device: Literal["cpu", "cuda", "mps"] = "cpu"


def generate_command(argv: list[str]) -> None:
    """Run `retain generate`."""
    path, args = take_run(argv, "generate", Generate)
    if args.count is not None and args.count < 1:
        raise Usage(f"count: {args.count} must be at least 1")
    if not 0 <= args.seed < SEEDS:
        raise Usage(f"seed: {args.seed} must not be negative, and lie below {SEEDS}")
    if args.out is not None and not args.out.lower().endswith(".png"):
        raise Usage(f"out: {args.out} must be a .png")
    from retain.runs.run import load_run

    run = load_run(path, teacher=False, device=args.device)
    if args.complete is not None or args.images:
        if args.compile or args.count is not None or args.stop:
            raise Usage(
                "compile, count, stop: what is completed is the images that are named, as they are; leave it out"
            )
        from retain.cli.complete import complete_images

        write_samples(path, dataclasses.asdict(args), complete_images(run, path, args))
        return
    args = dataclasses.replace(args, prompt=read_argument(args.prompt))
    from retain.inference.fast_step import fast_step
    from retain.inference.text import stream_text

    kind = run.state["kind"]
    image = kind == "image" and run.state["image_shape"] is not None
    if args.out is not None and not image:
        raise Usage(f"out: {args.out} is for images, and this run is of {kind}; leave it out")
    count = (32 if image else 1) if args.count is None else args.count
    sampling: dict[str, Any] = {
        "temperature": args.temperature,
        "top_k": args.top_k,
        "top_p": args.top_p,
        "seed": args.seed,
        "step": fast_step(run.rnn, count) if args.compile else None,
    }
    if image:
        generate_images(run, path, args, count, sampling)
        return
    length = 500 if args.length is None else args.length
    stream = stream_text(run, args.prompt, length, stop=args.stop, count=count, **sampling)
    samples = print_texts(args.prompt, stream, count)
    write_samples(path, dataclasses.asdict(args) | {"length": length}, {"samples": samples})


def generate_images(run: Run, path: Path, args: Generate, count: int, sampling: dict[str, Any]) -> None:
    """Sample whole images, as a grid in a PNG."""
    import torch

    from retain.data import encode
    from retain.inference.complete import save_image_grid
    from retain.inference.generate import generate

    shape, vocab_size = run.state["image_shape"], run.state["vocab_size"]
    prompt = encode(args.prompt, "image", vocab_size)
    if args.stop:
        raise Usage(f"stop: {args.stop[0]!r} is for text, and this run is of images; leave it out")
    size = shape[0] * shape[1]
    if args.length is not None and args.length != size - len(prompt):
        raise Usage(f"length: {args.length} does not fill an image of {size} pixels; leave it out")
    if len(prompt) > size:
        raise Usage(f"prompt: {len(prompt)} pixels are more than an image has, {size}")
    length = size - len(prompt)
    start = torch.tensor([prompt] * count, dtype=torch.long)
    stream = generate(run.rnn, start, length, **sampling)
    tokens = torch.cat([start, torch.stack([t.cpu() for t in stream], 1)], 1) if length else start
    target = Path(args.out) if args.out else path / "samples.png"
    save_image_grid(tokens, (shape[0], shape[1]), vocab_size, target)
    settings = dataclasses.asdict(args) | {"length": length}
    write_samples(path, settings, {"images": tokens.tolist(), "png": str(target)})
    print(f"{count} images in {target}")


def print_texts(prompt: str, stream: Iterator[list[Piece]], count: int) -> list[dict[str, Any]]:
    """Print texts, a single one as it comes, and return what is kept of each as JSON values."""
    single = count == 1
    numbers = [0] * count
    tokens = [deque[int](maxlen=KEPT) for _ in range(count)]
    texts = [deque[str](maxlen=KEPT if single else None) for _ in range(count)]  # several are yet to be printed
    try:
        if single:
            print(prompt, end="", flush=True)
        for pieces in stream:
            for i, piece in enumerate(pieces):
                if piece.token is not None:
                    numbers[i] += 1
                    tokens[i].append(piece.token)
                if piece.text:
                    texts[i].append(piece.text)
            if single:
                print(pieces[0].text, end="", flush=True)
                if getattr(sys.stdout, "unread", False):  # nobody waits for the rest
                    break
        for i in range(count if not single else 0):
            print(f"--- {i + 1} of {count} ---\n{prompt}{''.join(texts[i])}")
    finally:
        if single:
            print()  # whatever comes next, such as what Ctrl-C is answered with, begins a line
    return [
        {"count": numbers[i], "tokens": list(tokens[i]), "text": "".join(list(texts[i])[-KEPT:])} for i in range(count)
    ]


def read_argument(prompt: str) -> str:
    """Return the prompt that --prompt names: @FILE, - for stdin, or itself. Raises UserError if it is no text."""
    if prompt != "-" and not prompt.startswith("@"):
        return prompt
    if prompt.startswith("@@"):
        return prompt[1:]
    name = "stdin" if prompt == "-" else repr(prompt[1:])
    try:
        content = sys.stdin.buffer.read() if prompt == "-" else Path(os.path.expanduser(prompt[1:])).read_bytes()
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise Usage(f"prompt: {name} cannot be read ({error.strerror}); for a prompt with @ first give @@") from None
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise Usage(f"prompt: {name} is not UTF-8 text; give a text file")
    text = text.removesuffix("\n").removesuffix("\r")
    if not text:
        raise Usage(f"prompt: {name} is empty; leave --prompt out to sample from nothing")
    return text


def write_samples(path: Path, settings: dict[str, Any], samples: dict[str, Any]) -> None:
    """Keep what was sampled in the run folder, with its settings."""
    from retain.files import keep_printed

    keep_printed(path / "samples.json", json.dumps({"settings": settings, **samples}))
