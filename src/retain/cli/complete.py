"""What `retain generate --complete N` or `--images FILE ...` does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from retain.cli.arguments import Usage
from retain.config import ImageDataConfig
from retain.errors import UserError
from retain.inference.complete import complete, save_image_grid, true_images
from retain.inference.generate import check_sampling
from retain.runs.run import Run


def complete_images(run: Run, path: Path, args: Any) -> dict[str, Any]:
    """Draw a PNG with a row per image: given, completed and truth.

    Returns:
        The images, and the PNG's path, as JSON values.
    """
    if args.complete is not None and args.images:
        raise Usage("complete, images: give one of them")
    if args.complete is not None and args.complete < 1:
        raise Usage(f"complete: {args.complete} must be at least 1")
    if args.prompt or args.length is not None:
        raise Usage("prompt, length: the upper half of the images is given and the lower sampled; leave them out")
    data = run.config.data
    if isinstance(data, ImageDataConfig):
        shape, levels = (data.image_size, data.image_size), data.levels
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
