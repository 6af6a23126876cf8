"""`retain generate`: a stream of text or tokens, or a grid of images."""

from __future__ import annotations

import codecs
import dataclasses
import json
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from retain.arguments import Usage, take_run
from retain.config import SEEDS

KEPT = 100_000
"""Tokens that samples.json has: the last of a longer text, so that memory does not grow with the length."""


@dataclass(frozen=True)
class Generate:
    """Sample from the RNN alone, streaming; images become a PNG grid."""

    prompt: str = ""
    """What the RNN reads first: text, or for other data tokens separated by spaces."""
    length: int | None = None
    """Tokens to sample; None is 500, or whole images."""
    temperature: float = 1.0
    """0 takes the likeliest token."""
    top_k: int | None = None
    """Sample among the k likeliest tokens."""
    top_p: float | None = None
    """Sample among the fewest tokens whose probability reaches p."""
    seed: int = 0
    count: int | None = None
    """Images only: how many; None is 32."""
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
    path, args = take_run(argv, "generate", Generate)
    if args.count is not None and args.count < 1:
        raise Usage(f"count: {args.count} must be at least 1")
    if not 0 <= args.seed < SEEDS:
        raise Usage(f"seed: {args.seed} must not be negative, and lie below {SEEDS}")
    if args.out is not None and not args.out.lower().endswith(".png"):
        raise Usage(f"out: {args.out} must be a .png")
    from retain.run import load_run, read_tokenizer

    run = load_run(path, teacher=False, device=args.device)
    if args.complete is not None or args.images:
        if args.compile or args.count is not None:
            raise Usage("compile, count: images are completed as many as are named, and not compiled; leave it out")
        from retain.complete import complete_images

        write_samples(path, dataclasses.asdict(args), complete_images(run, path, args))
        return
    import torch

    from retain.data import decode, encode
    from retain.data.subwords import read_prompt, token_writer
    from retain.generate import (
        check_sampling,
        fast_step,
        generate,
        save_image_grid,
    )

    kind, shape, vocab_size = run.state["kind"], run.state["image_shape"], run.state["vocab_size"]
    tokenizer = read_tokenizer(path)
    prompt = read_prompt(tokenizer, args.prompt) if tokenizer else encode(args.prompt, kind, vocab_size)
    image = kind == "image" and shape is not None
    if args.out is not None and not image:
        raise Usage(f"out: {args.out} is for images, and this run is of {kind}; leave it out")
    if args.count is not None and not image:
        raise Usage(f"count: {args.count} is for images, and this run is of {kind}; leave it out")
    length = args.length
    if image:
        size = shape[0] * shape[1]
        if length is not None and length != size - len(prompt):
            raise Usage(f"length: {length} does not fill an image of {size} pixels; leave it out")
        if len(prompt) > size:
            raise Usage(f"prompt: {len(prompt)} pixels are more than an image has, {size}")
        length = size - len(prompt)
    length = 500 if length is None else length
    check_sampling(length, args.temperature, args.top_k, args.top_p)
    rows = (32 if args.count is None else args.count) if image else 1
    start = torch.tensor([prompt] * rows, dtype=torch.long).view(rows, len(prompt))
    stream = generate(
        run.rnn,
        start,
        length,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        seed=args.seed,
        step=fast_step(run.rnn, rows) if args.compile else None,
    )
    settings = dataclasses.asdict(args) | {"length": length}
    if image:
        tokens = torch.cat([start, torch.stack([t.cpu() for t in stream], 1)], 1) if length else start
        target = Path(args.out) if args.out else path / "samples.png"
        save_image_grid(tokens, (shape[0], shape[1]), vocab_size, target)
        write_samples(path, settings, {"images": tokens.tolist(), "png": str(target)})
        print(f"{rows} images in {target}")
        return
    sampled: deque[int] = deque(maxlen=KEPT)
    count = 0
    write: Callable[[int], None] = lambda token: print(decode([token], kind), end=" ", flush=True)  # noqa: E731
    if tokenizer:
        write = token_writer(tokenizer)
    elif kind == "text":
        write = text_writer()
    if args.prompt:
        print(args.prompt, end="" if kind == "text" or tokenizer else " ", flush=True)
    for token in stream:
        if int(token[0]) == run.state.get("end"):
            break
        sampled.append(int(token[0]))
        count += 1
        write(sampled[-1])
        if getattr(sys.stdout, "unread", False):  # nobody waits for the rest
            break
    print()
    kept = list(sampled)
    text = tokenizer.decode(kept) if tokenizer else decode(kept, kind)
    write_samples(path, settings, {"count": count, "tokens": kept, "text": text})


def write_samples(path: Path, settings: dict[str, Any], samples: dict[str, Any]) -> None:
    from retain.checkpoint import keep_printed

    keep_printed(path / "samples.json", json.dumps({"settings": settings, **samples}))


def text_writer() -> Callable[[int], None]:
    """Writes bytes to stdout as they come, a character as soon as it is whole."""

    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def write(token: int) -> None:
        print(decoder.decode(bytes([token])), end="", flush=True)

    return write
