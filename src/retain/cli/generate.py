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
from retain.config import SEEDS, ImageDataConfig
from retain.errors import UserError

if TYPE_CHECKING:
    from retain.inference.text import Piece
    from retain.runs.run import Run

KEPT = 100_000
"""Most tokens that samples.json has: the last ones of a longer text, so that memory does not grow with the length."""


@dataclass(frozen=True)
class Generate:
    """Sample from the RNN alone, token by token; images become a PNG grid."""

    prompt: str = ""
    """What the RNN reads first: text, or for other data tokens separated by spaces.
    @FILE reads the prompt from a UTF-8 file, and - from stdin, both without the last line break.
    @@TEXT is the prompt @TEXT."""
    length: int | None = None
    """Tokens to sample. None: 500, or whole images."""
    temperature: float = 1.0
    """0 takes the likeliest token."""
    top_k: int | None = None
    """Sample among the k likeliest tokens."""
    top_p: float | None = None
    """Sample among the fewest tokens whose total probability reaches p."""
    stop: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Text only: stop before this string. May be given several times."""
    seed: int = 0
    """The same seed and count give the same samples."""
    count: int | None = None
    """How many texts or images to sample at once. None: 1 text, or 32 images.
    Several texts are printed when all have ended, each after a line '--- 1 of N ---'."""
    complete: int | None = None
    """Images only: complete the lower half of this many images of the test split."""
    images: tuple[str, ...] = ()
    """Images only: complete the lower half of these image files."""
    out: str | None = None
    """Images only: the PNG. None: samples.png or completed.png in the run folder."""
    compile: bool = False
    """Compile the step first. That takes a minute and then makes each token cheaper, so it is for long texts."""
    device: Literal["cpu", "cuda", "mps"] = "cpu"


def generate_command(argv: list[str]) -> None:
    """Run `retain generate`."""
    path, args = take_run(argv, "generate", Generate)
    if args.count is not None and args.count < 1:
        raise Usage(f"count: {args.count} must be at least 1")
    if not 0 <= args.seed < SEEDS:
        raise Usage(f"seed: {args.seed} must be at least 0 and below {SEEDS}")
    if args.out is not None and not args.out.lower().endswith(".png"):
        raise Usage(f"out: {args.out} must be a .png")
    from retain.inference.fast_step import fast_step
    from retain.inference.text import stream_text
    from retain.runs.run import load_run, refuse_numbers

    run = load_run(path, teacher=False, device=args.device)
    refuse_numbers(run, "generate")
    sampling: dict[str, Any] = {key: getattr(args, key) for key in ("temperature", "top_k", "top_p", "seed")}
    if args.complete is not None or args.images:
        write_samples(path, args, complete_images(run, path, args, sampling))
        return
    args = dataclasses.replace(args, prompt=read_argument(args.prompt))
    kind = run.state["kind"]
    image = kind == "image" and run.state["image_shape"] is not None
    if args.out is not None and not image:
        raise Usage(f"out: {args.out} is for images, but this run is of {kind}; leave it out")
    count = (32 if image else 1) if args.count is None else args.count
    sampling["step"] = fast_step(run.rnn, count) if args.compile else None
    if image:
        length, samples = generate_images(run, path, args, count, sampling)
    else:
        length = 500 if args.length is None else args.length
        stream = stream_text(run, args.prompt, length, stop=args.stop, count=count, **sampling)
        samples = {"samples": print_texts(args.prompt, stream, count)}
    write_samples(path, dataclasses.replace(args, length=length), samples)


def complete_images(run: Run, path: Path, args: Generate, sampling: dict[str, Any]) -> dict[str, Any]:
    """Draw a PNG with a row per image: given, completed and truth. Returns these and the path as JSON values."""
    unread = {"compile": args.compile, "count": args.count is not None, "stop": args.stop}
    for name in (name for name, is_given in unread.items() if is_given):
        raise Usage(f"{name}: completing images does not read it; leave it out")
    if args.complete is not None and args.images:
        raise Usage("complete, images: give one of them")
    if args.complete is not None and args.complete < 1:
        raise Usage(f"complete: {args.complete} must be at least 1")
    if args.prompt or args.length is not None:
        raise Usage("prompt, length: completing samples the lower half of the images; leave them out")
    import torch

    from retain.inference.complete import complete, save_image_grid, true_images
    from retain.inference.generate import check_sampling

    data = run.config.data
    if isinstance(data, ImageDataConfig):
        shape, levels = (data.image_size, data.image_size), data.levels
    elif run.state["image_shape"] is not None:
        shape, levels = tuple(run.state["image_shape"]), run.state["vocab_size"]
    else:
        raise UserError(f"complete: this run is of {data.name}, not of images; give a --prompt instead")
    check_sampling(0, args.temperature, args.top_k, args.top_p)
    truth = true_images(run.config, args.complete, list(args.images))
    given, completed = complete(run.rnn, truth, shape, run.config, **sampling)
    target = Path(args.out) if args.out else path / "completed.png"
    save_image_grid(torch.stack([given, completed, truth], 1).flatten(0, 1), shape, levels, target, columns=3)
    print(f"{len(truth)} images in {target}: given, completed, truth")
    return {"given": given.tolist(), "completed": completed.tolist(), "truth": truth.tolist(), "png": str(target)}


def generate_images(
    run: Run, path: Path, args: Generate, count: int, sampling: dict[str, Any]
) -> tuple[int, dict[str, Any]]:
    """Sample whole images into a PNG. Returns the number of pixels sampled per image, and the images as JSON values."""
    import torch

    from retain.data import encode
    from retain.inference.complete import save_image_grid
    from retain.inference.generate import generate

    shape, vocab_size = run.state["image_shape"], run.state["vocab_size"]
    prompt = encode(args.prompt, "image", vocab_size)
    if args.stop:
        raise Usage(f"stop: {args.stop[0]!r} is for text, but this run is of images; leave it out")
    size = shape[0] * shape[1]
    length = size - len(prompt)
    if args.length is not None and args.length != length:
        raise Usage(f"length: {args.length} does not fill an image of {size} pixels; leave it out")
    if length < 0:
        raise Usage(f"prompt: {len(prompt)} pixels are more than an image has ({size})")
    start = torch.tensor([prompt] * count, dtype=torch.long)
    drawn = [token.cpu()[:, None] for token in generate(run.rnn, start, length, **sampling)]
    tokens = torch.cat([start, *drawn], 1)
    target = Path(args.out) if args.out else path / "samples.png"
    save_image_grid(tokens, (shape[0], shape[1]), vocab_size, target)
    print(f"{count} images in {target}")
    return length, {"images": tokens.tolist(), "png": str(target)}


def print_texts(prompt: str, stream: Iterator[list[Piece]], count: int) -> list[dict[str, Any]]:
    """Print texts, a single one while it is sampled, and return the part of each to keep, as JSON values."""
    single = count == 1
    numbers = [0] * count
    tokens = [deque[int](maxlen=KEPT) for _ in range(count)]
    texts = [deque[str](maxlen=KEPT if single else None) for _ in range(count)]  # several are printed at the end
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
                if getattr(sys.stdout, "unread", False):  # nobody reads the rest
                    break
    finally:
        if single:
            print()  # later output, such as the answer to Ctrl-C, begins a new line
    if not single:
        for i, text in enumerate(texts, 1):
            print(f"--- {i} of {count} ---\n{prompt}{''.join(text)}")
    return [
        {"count": number, "tokens": list(of_text), "text": "".join(list(text)[-KEPT:])}
        for number, of_text, text in zip(numbers, tokens, texts, strict=True)
    ]


def read_argument(prompt: str) -> str:
    """Return the prompt that --prompt names: @FILE, - for stdin, or itself. Raises UserError if it is not text."""
    if prompt != "-" and not prompt.startswith("@"):
        return prompt
    if prompt.startswith("@@"):
        return prompt[1:]
    name = "stdin" if prompt == "-" else repr(prompt[1:])
    try:
        content = sys.stdin.buffer.read() if prompt == "-" else Path(os.path.expanduser(prompt[1:])).read_bytes()
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise Usage(f"prompt: {name} cannot be read ({error.strerror}); a prompt that begins with @ needs @@") from None
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise Usage(f"prompt: {name} is not UTF-8 text; give a text file")
    text = text.removesuffix("\n").removesuffix("\r")
    if not text:
        raise Usage(f"prompt: {name} is empty; leave --prompt out to sample from nothing")
    return text


def write_samples(path: Path, args: Generate, samples: dict[str, Any]) -> None:
    """Save the samples and their settings in the run folder."""
    from retain.files import keep_printed

    keep_printed(path / "samples.json", json.dumps({"settings": dataclasses.asdict(args), **samples}))
