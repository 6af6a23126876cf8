"""Export of a static page that runs a trained RNN in the browser: HTML, ONNX graphs, and metadata."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from retain.errors import UserError
from retain.export.onnx import check_libraries, describe, write_graphs
from retain.files import new_folder, write_file
from retain.runs.run import Run

HERE = Path(__file__).parent

PAGE = {"page.html": "index.html", "page.css": "page.css", "page.js": "page.js"}
"""Source file → its name in the exported folder."""

RUNTIME = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
"""The files of onnxruntime-web's `dist` that the page loads."""

CDN_VERSION = "1.30.0"
"""The version of onnxruntime-web that the page was tested with, and that a page without its own runtime loads."""

CDN = f"https://cdn.jsdelivr.net/npm/onnxruntime-web@{CDN_VERSION}/dist/"


def export_web(run: Run, directory: Path, runtime: str | Path | None = None) -> None:
    """Write a new folder with a page that runs the RNN in the browser; any web server can serve it.

    Args:
        run: The return value of `load_run`, whose tokens are bytes or numbers.
        directory: The folder to write.
        runtime: The folder of the npm package onnxruntime-web, whose files are copied so that the page works offline.
            None: the page loads CDN_VERSION from a CDN.

    Raises:
        UserError: The folder exists, the run's tokens are subwords, `runtime` is not that package, or for a reason of
            `export_onnx`.
    """
    metadata = describe(run)
    if metadata["codec"] == "tokenizer":
        raise UserError(f"run: {run.path} reads subwords, and the page has no tokenizer for them; use --to onnx")
    version = CDN_VERSION if runtime is None else read_version(Path(runtime))
    check_libraries()
    with new_folder(directory) as folder:
        write_graphs(run.rnn, folder, ("step", "readout"))
        for ours, name in PAGE.items():
            write_file(folder / name, (HERE / ours).read_bytes())
        path, source = CDN, "cdn.jsdelivr.net"
        if runtime is not None:
            path, source = "./runtime/", "this folder"
            (folder / "runtime").mkdir()
            for name in RUNTIME:
                shutil.copyfile(Path(runtime) / "dist" / name, folder / "runtime" / name)
        metadata |= {
            "name": run.path.resolve().name,
            "runtime": {"path": path, "version": version, "source": source},
        }
        write_file(folder / "metadata.json", json.dumps(metadata).encode() + b"\n")


def read_version(package: Path) -> str:
    """Return the version of the npm package onnxruntime-web in a folder. Raises UserError if it is another or old."""
    try:
        about = json.loads((package / "package.json").read_text(encoding="utf-8"))
        name, version = about["name"], str(about["version"])
    except (OSError, ValueError, KeyError, TypeError):
        name, version = None, ""
    if name != "onnxruntime-web":
        raise UserError(
            f"runtime: {package} is not the npm package onnxruntime-web; run npm install onnxruntime-web, and give "
            "node_modules/onnxruntime-web"
        )
    missing = [file for file in RUNTIME if not (package / "dist" / file).is_file()]
    if missing:
        raise UserError(f"runtime: onnxruntime-web {version} has no dist/{missing[0]}; install {CDN_VERSION}")
    return version
