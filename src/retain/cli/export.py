"""`retain export`: a trained RNN as a folder for other libraries."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from retain.cli.arguments import Usage, parse

if TYPE_CHECKING:
    from retain.runs.run import Run

TARGETS = {
    "hf": "retain.hf:export_hf",
    "onnx": "retain.export.onnx:export_onnx",
    "web": "retain.export.web:export_web",
}
"""Functions of the run (`retain.load_run`) and the folder, which they write through `retain.files.new_folder`."""


@dataclass(frozen=True)
class Export:
    """Write a trained RNN as a new folder that other libraries read."""

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """The run folder."""
    directory: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DIR")]
    """The folder to write. It must be absent or empty."""
    to: Annotated[str, tyro.conf.arg(metavar="hf|onnx|web")]
    """hf: a model of Hugging Face transformers. onnx: graphs for onnxruntime. web: a page that runs in a browser."""
    int8: bool = False
    """onnx only: also write step-int8.onnx, a quarter of the size, and score it on validation data."""
    runtime: str | None = None
    """web only: the folder of the npm package onnxruntime-web, to be copied into the page's folder.
    The page then works offline. None: the page loads the package from a CDN."""


def export_command(argv: list[str]) -> None:
    """Run `retain export`."""
    args = parse(Export, argv, "retain export")
    if args.to not in TARGETS:
        raise Usage(f"to: {args.to!r} is none of {', '.join(TARGETS)}")
    if args.runtime is not None and args.to != "web":
        raise Usage(f"runtime: {args.runtime} is for --to web, not for {args.to}; leave it out")
    if args.int8 and args.to != "onnx":
        raise Usage(f"int8: it is for --to onnx, not for {args.to}; leave it out")
    from retain.files import check_new_folder
    from retain.runs.run import load_run, refuse_numbers

    directory = Path(args.directory)
    check_new_folder(directory)  # before anything is loaded
    module, _, name = TARGETS[args.to].partition(":")
    function = getattr(importlib.import_module(module), name)
    run = load_run(args.run)
    refuse_numbers(run, "export")
    options: dict[str, Any] = {"onnx": {"int8": args.int8}, "web": {"runtime": args.runtime}}.get(args.to, {})
    if args.to == "hf":
        options["command"] = public_command(run)
    written = function(run, directory, **options)
    if args.int8:
        bits = written["int8"]["bits_per_token"]
        print(f"int8: {bits['before']:.4f} bits per token before, {bits['after']:.4f} after")
    print(f"{directory}: {sum(file.stat().st_size for file in directory.rglob('*') if file.is_file()):,} bytes")


def public_command(run: Run) -> str | None:
    """Return the `retain train` line of a run, without private folders; None if no command trained it."""
    import shlex

    from retain.cli.report import write_command

    if run.state.get("own_data"):
        return None
    words = shlex.split(write_command(run.config, Path("RUN")))
    return shlex.join([Path(word).name if word.startswith("/") else word for word in words])
