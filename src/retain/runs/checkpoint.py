"""Folders of tensors and JSON that are complete or absent: atomic save, verified load, rotation.

A folder holds NAME.safetensors for each named state dict, `state.json`, and `manifest.json` with the size and SHA-256
of every other file. A checkpoint is such a folder under RUN/checkpoints; the deployed model is one at RUN itself.
Nothing is ever unpickled. One process writes a run at a time; any number may read it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from retain import files as disk
from retain.errors import CheckpointError
from retain.files import delete_folder, sync_folder, tidy

FORMAT_VERSION = 1
StateDicts = Mapping[str, Mapping[str, Tensor]]
Loaded = tuple[dict[str, dict[str, Tensor]], dict[str, Any]]
log = logging.getLogger("retain")


def save_files(
    folder: str | Path,
    tensors: StateDicts,
    state: dict[str, Any],
    *,
    best: int | None = None,
    previous: Iterable[Path] = (),
) -> None:
    """Write `folder` with the named state dicts and a state of JSON values, all of it or nothing.

    An existing folder is replaced. After a kill at any moment, the old or the new one can be loaded. Raises
    CheckpointError if the disk refuses. The message may name one of the `previous` folders as still good.
    """
    folder = Path(folder)
    with explain_failure(folder, [folder, *previous]):
        _write_folder(folder, _encode(tensors, state, best))


def load_files(folder: str | Path, names: Iterable[str] | None = None, device: str | torch.device = "cpu") -> Loaded:
    """Read the named state dicts (None: all) and the state of `folder`, and verify every file that is read.

    Raises CheckpointError for a file that is missing, truncated or altered, another format version, or a name that the
    folder does not have.
    """
    folder = _standing(Path(folder))
    files = _manifest(folder)["files"]
    held = [name.removesuffix(".safetensors") for name in files if name.endswith(".safetensors")]
    tensors: dict[str, dict[str, Tensor]] = {}
    for name in held if names is None else names:
        if name not in held:
            raise CheckpointError(f"{folder}: holds no {name!r}, only {', '.join(held) or 'no tensors at all'}")
        path = folder / f"{name}.safetensors"
        try:
            loaded = safetensors.torch.load(_read_verified(path, files))
        except safetensors.SafetensorError as error:
            raise CheckpointError(f"{path}: is not a safetensors file ({error}); {_remedy(folder)}") from error
        tensors[name] = {key: value.to(device) for key, value in loaded.items()}
    return tensors, _read_state(folder, files)


def save_checkpoint(
    run: str | Path, step: int, tensors: StateDicts, state: dict[str, Any], *, keep: int = 2, best: int | None = None
) -> Path:
    """Write RUN/checkpoints/step-NNNNNNNN, then delete all but the last `keep` and the best; return its path.

    `best` is the step of the best checkpoint so far, which may be `step`; None keeps the last one. It is stored in this
    checkpoint's own manifest, so that no second file can disagree. Checkpoints of later steps are deleted: the run went
    back to before them, and a resume would pick them up. Raises CheckpointError as `save_files`.
    """
    assert 0 <= step and keep >= 1 and (best is None or best <= step)
    run = Path(run)
    if best is None:
        best = next((b for s, f in _steps(run) if s <= step and (b := _best(f)) is not None), None)
    folder = run / "checkpoints" / f"step-{step:08d}"
    with explain_failure(folder, list_checkpoints(run)):
        tidy(folder.parent)
        _write_folder(folder, _encode(tensors, state, best))
    past = [s for s, _ in _steps(run) if s <= step]
    kept = {*past[:keep], best}
    for other, path in _steps(run):
        if other > step:
            log.warning("%s is from after step %d, to which this run went back; deleting it", path, step)
        if other not in kept:
            delete_folder(path)
    return folder


def find_run(path: Path) -> Path:
    """Find the run of a checkpoint or of the model after a phase. Any other folder is a run itself."""
    return path.parent.parent if path.parent.name in ("checkpoints", "phases") else path


def list_checkpoints(run: str | Path) -> list[Path]:
    """List the run's checkpoints, newest first, including damaged ones."""
    return [folder for _, folder in _steps(Path(run))]


def latest_checkpoint(run: str | Path) -> Path:
    """Find the newest checkpoint of the run that verifies. A damaged one is skipped with one logged line.

    Raises CheckpointError if there is none, or if all are damaged.
    """
    steps = _steps(Path(run))
    if not steps:
        raise CheckpointError(f"{Path(run) / 'checkpoints'}: no checkpoints; train first, or name another run folder")
    newest = None
    for _, folder in steps:
        if (problem := _problem(folder)) is None:
            if newest:
                log.warning("%s; using %s instead", newest, folder)
            return folder
        newest = newest or problem
    raise CheckpointError(f"{run}: every checkpoint is damaged ({len(steps)} of {len(steps)}), newest: {newest}")


def best_checkpoint(run: str | Path) -> Path:
    """Find the checkpoint that the newest usable one names as the best so far, or the newest itself if it names none.

    If the best is gone or damaged, the newest is returned with one logged line. Raises as `latest_checkpoint`.
    """
    latest = latest_checkpoint(run)
    best = _best(latest)
    folder = latest if best is None else _standing(latest.with_name(f"step-{best:08d}"))
    if (problem := _problem(folder)) is None:
        return folder
    log.warning("%s; using %s, the newest, instead of the best", problem, latest)
    return latest


def export(run: str | Path, tensors: StateDicts, state: dict[str, Any]) -> None:
    """Write the deployed model: RUN/NAME.safetensors for each name, RUN/state.json, and RUN/manifest.json last.

    Each file is replaced atomically, after all of them are safely on disk, so a full disk leaves the old export. After
    a kill between two replacements the manifest does not match, and `load_files` says so.
    Raises CheckpointError as `save_files` does.
    """
    run = Path(run)
    files = _encode(tensors, state, None)
    temporary = {name: run / f".tmp-{name}-{os.getpid()}" for name in files}
    with explain_failure(run / "manifest.json", [run]):
        try:
            run.mkdir(parents=True, exist_ok=True)
            for name, data in files.items():
                tidy(run, name)
                disk.write_file(temporary[name], data)
            for name in files:
                os.replace(temporary[name], run / name)
            sync_folder(run)
        finally:
            for name in files:
                tidy(run, name)


def load_model(run: str | Path, names: Iterable[str] | None = None, device: str | torch.device = "cpu") -> Loaded:
    """Read the run's model: its export, or its best checkpoint if training has not finished.

    Another model than the one asked for is never loaded in silence: if the export is damaged, the CheckpointError names
    the checkpoint that could be used. Raises CheckpointError too if the run has neither.
    """
    run = Path(run)
    names = None if names is None else list(names)
    if (run / "manifest.json").exists():
        try:
            return load_files(run, names, device)
        except CheckpointError as error:
            usable = next((f for _, f in _steps(run) if _problem(f) is None), None)
            if usable is None or _problem(run) is None:
                raise
            way_out = f"or delete {run / 'manifest.json'} to load the checkpoints instead ({usable} is good)"
            raise CheckpointError(f"{error}, {way_out}") from error
    if not _steps(run):
        if (run / "model.safetensors").exists():
            raise CheckpointError(f"{run}: model.safetensors needs its manifest.json and state.json; copy them, too")
        what = "holds neither an exported model nor a checkpoint" if run.is_dir() else "no such run folder"
        raise CheckpointError(f"{run}: {what}; train first, or name another run folder")
    return load_files(best_checkpoint(run), names, device)


def _encode(tensors: StateDicts, state: dict[str, Any], best: int | None) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    for name, group in tensors.items():
        owned, seen = {}, set()
        for key, tensor in group.items():
            tensor = tensor.detach().cpu().contiguous()
            # Tied weights share storage, which safetensors refuses, so each gets a copy.
            storage = tensor.untyped_storage().data_ptr()
            owned[key] = tensor.clone() if storage in seen else tensor
            seen.add(storage)
        files[f"{name}.safetensors"] = safetensors.torch.save(owned)
    files["state.json"] = json.dumps(state, indent=1).encode()
    entries = {name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)} for name, data in files.items()}
    manifest = {"version": FORMAT_VERSION, "best": best, "files": entries}
    files["manifest.json"] = json.dumps(manifest, indent=1).encode()
    return files


def _write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    temporary = folder.with_name(f".tmp-{folder.name}-{os.getpid()}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    tidy(folder.parent, folder.name)
    try:
        temporary.mkdir()
        for name, data in files.items():
            disk.write_file(temporary / name, data)
        sync_folder(temporary)
        if folder.exists():
            # Between these two renames readers find the old folder under its ".old-" name: see _standing.
            os.rename(folder, folder.with_name(f".old-{folder.name}"))
        os.rename(temporary, folder)
        sync_folder(folder.parent)
    finally:
        tidy(folder.parent, folder.name)


def _standing(folder: Path) -> Path:
    """Return the folder, or its old version if a kill came between the two renames of a replacement."""
    aside = folder.with_name(f".old-{folder.name}")
    return aside if aside.is_dir() and not folder.exists() else folder


def _steps(run: Path) -> list[tuple[int, Path]]:
    """Return steps and folders of the run's checkpoints, newest first, including damaged ones."""
    parent = run / "checkpoints"
    found = (re.fullmatch(r"(?:\.old-)?step-(\d+)", path.name) for path in parent.glob("*step-*"))
    steps = sorted({int(name[1]) for name in found if name}, reverse=True)
    return [(step, _standing(parent / f"step-{step:08d}")) for step in steps]


def _best(folder: Path) -> int | None:
    try:
        best = _manifest(folder).get("best")
    except CheckpointError:
        return None
    return best if isinstance(best, int) else None


def _problem(folder: Path) -> str | None:
    """Return the first problem in any file of a folder; None if there is none."""
    try:
        files = _manifest(folder)["files"]
        for name in files:
            _read_verified(folder / name, files)
        _read_state(folder, files)
    except CheckpointError as error:
        return str(error)
    return None


def _manifest(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder")
    path = folder / "manifest.json"
    manifest = _parse(path, _read(path))
    version = manifest.get("version")
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: was written by format {version}, this retain reads {FORMAT_VERSION}; use the retain that wrote it"
        )
    files = manifest.get("files")
    if not isinstance(files, dict) or not all(
        Path(name).name == name and isinstance(entry, dict) and isinstance(entry.get("bytes"), int)
        for name, entry in files.items()
    ):
        raise CheckpointError(f"{path}: its list of files is not readable; {_remedy(folder)}")
    return manifest


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise CheckpointError(f"{path}: is missing; {_remedy(path.parent)}") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read, {error.strerror or error}") from error


def _read_verified(path: Path, files: Mapping[str, Any]) -> bytes:
    if path.name not in files:
        raise CheckpointError(f"{path}: is not in the manifest; {_remedy(path.parent)}")
    data, entry = _read(path), files[path.name]
    if len(data) != entry["bytes"]:
        what = "truncated" if len(data) < entry["bytes"] else "too long"
        sizes = f"{len(data)} bytes where {entry['bytes']} were written"
        raise CheckpointError(f"{path}: {what}, {sizes}; {_remedy(path.parent)}")
    if hashlib.sha256(data).hexdigest() != entry.get("sha256"):
        raise CheckpointError(f"{path}: its checksum differs from the manifest's; {_remedy(path.parent)}")
    return data


def _read_state(folder: Path, files: Mapping[str, Any]) -> dict[str, Any]:
    return _parse(folder / "state.json", _read_verified(folder / "state.json", files))


def _parse(path: Path, data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: is not readable JSON; {_remedy(path.parent)}")
    return value


def _remedy(folder: Path) -> str:
    if folder.parent.name == "checkpoints":
        return f"restore it from a copy, or delete {folder} to use another checkpoint"
    return "it was changed or its writing was cut short: restore it from a copy, or write it again"


@contextmanager
def explain_failure(path: str | Path, previous: Iterable[Path] = ()) -> Iterator[None]:
    """Raise CheckpointError if the disk refuses: `path` cannot be written, but a `previous` folder is still good."""
    try:
        yield
    except OSError as error:
        good = next((folder for folder in previous if _problem(folder) is None), None)
        still = f"; {good} is still good" if good else ""
        raise CheckpointError(f"{path}: cannot be written, {error.strerror or error}{still}") from error
