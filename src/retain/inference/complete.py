"""Images whose lower half the RNN completes from their upper half."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from retain.cli.arguments import Usage
from retain.config import RunConfig
from retain.data.batches import evenly_spaced
from retain.data.images import events_vocabulary, from_events, levels_of, read_image, to_events
from retain.errors import UserError
from retain.inference.generate import check_sampling, generate, save_image_grid
from retain.model.rnn import RNN
from retain.runs.run import Run

HIDDEN = -1
"""A pixel that is not given."""


def true_images(config: RunConfig, count: int | None, files: list[str]) -> Tensor:
    """What is to be completed, (B, H·W) levels: `count` images of the test split evenly spaced, or these files.

    Raises UserError for files that are no images, or where the run's data says not how files become pixels.
    """
    if files:
        if config.data.name != "images":
            raise UserError(f"images: {config.data.name} does not read image files; use --complete N")
        return torch.from_numpy(np.stack([read_image(f, config.data) for f in files]).reshape(len(files), -1)).long()
    from retain.data import load_data

    data = load_data(config.data)
    if config.data.events:
        if not config.data.reset or config.data.stream:
            raise UserError("complete: events carried over or streamed are no whole images; give --images FILE")
        index = evenly_spaced(data.documents("test"), count or 1)  # type: ignore[attr-defined]
        drawn = [from_events(data.document("test", int(i)), config.data) for i in index]  # type: ignore[attr-defined]
        return torch.from_numpy(np.stack(drawn).reshape(len(drawn), -1)).long()
    return torch.cat([batch["targets"] for batch in data.windows("test", 256, count)])


def complete(
    rnn: RNN, truth: Tensor, shape: tuple[int, int], config: RunConfig, **sampling: Any
) -> tuple[Tensor, Tensor]:
    """Complete the lower half of images: truth (B, H·W) → given (B, H·W) with HIDDEN below, completed (B, H·W).

    `sampling` goes to `generate`.
    """
    known = shape[0] // 2 * shape[1]
    given = truth.clone()
    given[:, known:] = HIDDEN
    if not config.data.events:
        rest = generate(rnn, truth[:, :known], truth.shape[1] - known, **sampling)
        return given, torch.cat([truth[:, :known], torch.stack([token.cpu() for token in rest], 1)], 1)
    # Events differ in number, so each image is read and continued by itself, until its end symbol.
    done, end = [], events_vocabulary(config.data) - 1
    for row in truth:
        upper = torch.where(torch.arange(len(row)) < known, row, 0).numpy().astype(np.uint8)
        events = to_events(upper.reshape(shape), config.data)[:-1]
        for token in generate(rnn, torch.from_numpy(events)[None], 2 * len(row), **sampling):
            if int(token[0]) == end:
                break
            events = np.append(events, int(token[0]))
        drawn = from_events(events, config.data).ravel()
        done.append(torch.where(torch.arange(len(row)) < known, row, torch.from_numpy(drawn).long()))
    return given, torch.stack(done)


def complete_images(run: Run, path: Path, args: Any) -> dict[str, Any]:
    """What `retain generate --complete N` or `--images FILE ...` asks for: a PNG with a row per image, given,
    completed and truth. Returns them, and the PNG's path, as JSON values."""
    if args.complete is not None and args.images:
        raise Usage("complete, images: give one of them")
    if args.complete is not None and args.complete < 1:
        raise Usage(f"complete: {args.complete} must be at least 1")
    if args.prompt or args.length is not None:
        raise Usage("prompt, length: the upper half of the images is given and the lower sampled; leave them out")
    data = run.config.data
    if data.name == "images":
        shape, levels = (data.image_size, data.image_size), levels_of(data)
    elif run.state["image_shape"] is not None:
        shape, levels = tuple(run.state["image_shape"]), run.state["vocab_size"]
    else:
        raise UserError(f"complete: this run is of {data.name}, not of images; give a --prompt instead")
    check_sampling(0, args.temperature, args.top_k, args.top_p)
    truth = true_images(run.config, args.complete, list(args.images))
    sampling = {"temperature": args.temperature, "top_k": args.top_k, "top_p": args.top_p, "seed": args.seed}
    given, completed = complete(run.rnn, truth, shape, run.config, **sampling)
    target = Path(args.out) if args.out else path / "completed.png"
    save_image_grid(torch.stack([given, completed, truth], 1).flatten(0, 1), shape, levels, target, columns=3)
    print(f"{len(truth)} images in {target}: given, completed, truth")
    return {"given": given.tolist(), "completed": completed.tolist(), "truth": truth.tolist(), "png": str(target)}
