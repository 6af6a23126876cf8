"""A run folder: build what its config describes, and load the RNN and its teacher back."""

from __future__ import annotations

import dataclasses
import json
import platform
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from retain import __version__
from retain.config import READ_BY_CELL, CellConfig, DataConfig, RunConfig
from retain.config.json import flatten, from_dict, load_config, option_of, save_config, to_dict
from retain.data.batches import Data
from retain.devices import check_device, fastest
from retain.errors import CheckpointError, UserError
from retain.files import replace_file
from retain.model.cells import CELLS, build_cell
from retain.model.modes import evaluating
from retain.model.rnn import RNN
from retain.model.teacher import Teacher
from retain.runs.checkpoint import export, failed, load_files, load_model, run_of
from retain.runs.lock import is_free
from retain.runs.progress import Progress

MAY_CHANGE = {"device", "tracker", "log_every", "data.path"}
"""Fields that a resumed run may have anew: where it runs, who is told, and where its data has moved to."""


def build(config: RunConfig, vocab_size: int, cell: nn.Module | None = None) -> tuple[RNN, Teacher]:
    """The RNN and the teacher of a run, freshly initialised; `cell` replaces the one the config names."""
    rnn = RNN(vocab_size, config.memory, config.teacher, config.cell, cell)
    return rnn, Teacher(vocab_size, config.memory, config.teacher)


@contextmanager
def weightless(cell: CellConfig) -> Iterator[None]:
    """Inside, models are built without weights, to be counted or checked. A user's cell may look at values, and has
    them; no random number is used up."""
    with torch.random.fork_rng(devices=[]), torch.device("meta" if cell.kind in CELLS else "cpu"):
        yield


@dataclass(frozen=True)
class Run:
    """What a run folder holds: config, state (vocabulary, data, progress), RNN and, where asked for, teacher."""

    path: Path
    config: RunConfig
    state: dict[str, Any]
    rnn: RNN
    teacher: Teacher | None


def phase_folder(path: Path, config: RunConfig, index: int) -> Path:
    """Where the model is kept as phase `index` (0, 1, …) left it: RUN/phases/1-smt."""
    return path / "phases" / f"{index + 1}-{config.phases[index]}"


def prepare_folder(config: RunConfig, out: Path, resume: bool) -> None:
    """Refuse to overwrite another run, or to go on with another config than the run's. Raises UserError."""
    saved = out / "config.json"
    if resume:
        if not saved.exists():
            raise UserError(f"resume: {out} holds no run; leave out --resume to start one")
        refuse_change(load_config(saved), config, out)
        if not began(out) and lost_checkpoints(out):
            raise UserError(
                f"resume: {out / 'checkpoints'} is gone, and with it what the run had learnt; bring it back, or delete "
                f"{out} to train anew"
            )
    elif not is_free(out):
        raise UserError(f"out: {out} already exists; add --resume to go on with it, or name another folder")


def refuse_change(before: RunConfig, now: RunConfig, out: Path, remedy: str = "resume without it") -> None:
    """Refuse to go on with settings that the run did not have. Raises UserError naming the first of them."""
    then, given = flatten(to_dict(before)), flatten(to_dict(now))
    own = str((out / "tokenizer.json").resolve())  # what `load_run` says of a run that has a copy
    for key in sorted(given.keys() - MAY_CHANGE):
        if key == "data.tokenizer" and given[key] == own:
            continue
        if then.get(key) != given[key]:
            raise UserError(
                f"resume: {key} was {then.get(key)!r} in {out} and is {given[key]!r} now; "
                f"{remedy}, or train into a new --out"
            )


def lost_checkpoints(out: Path) -> bool:
    """Whether a run without a checkpoint once had one.

    Its first validation that is a number leaves one, before another step is made.
    """
    if (out / "phases").exists():
        return True
    path = out / "metrics.jsonl"
    lines = path.read_bytes().splitlines() if path.exists() else []
    return any(re.search(rb'"validation_bits_per_token": \d', line) for line in lines[:-1])


def same_data(out: Path, data: Data) -> None:
    """Refuse to go on with other data than the run began with. Raises UserError naming what differs."""
    try:
        before = json.loads((out / "data.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return  # as damaged as it is, it says nothing
    if difference := data_changed(before, data.info):
        raise UserError(f"resume: {difference}; bring it back, or train into a new --out")


def same_checksum(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two files, by what `Data.info` says of them, are the same wherever they lie."""
    return any(key.startswith("sha256") and one[key] == other.get(key) for key in one)


def data_changed(before: dict[str, Any], info: dict[str, Any]) -> str | None:
    """What differs between the data that a run began with and that of now, in words; None where nothing does."""
    then, now = flatten(before), flatten(json.loads(json.dumps(info)))
    both = then.keys() & now.keys()
    if any(key.startswith("sha256") for key in both):
        both -= {"path", "prepared", "revision"}  # it may have moved
    for key in sorted(both):
        if then[key] != now[key]:
            return f"the data has changed: its {key} was {then[key]!r} and is {now[key]!r} now"
    return None


def keep_data(out: Path, data: Data) -> None:
    """Write down in a run folder what the run reads, and a copy of the tokenizer that makes its tokens."""
    replace_file(out / "data.json", json.dumps(data.info, indent=2).encode() + b"\n")
    if tokenizer := getattr(data, "tokenizer", None):
        replace_file(out / "tokenizer.json", tokenizer.encode())


def own_tokenizer(config: DataConfig, path: Path) -> DataConfig:
    """The tokenizer of a run is the copy in its folder: the file that it began with may be another by now, or gone."""
    copy = run_of(path) / "tokenizer.json"
    if getattr(config, "tokenizer", None) is None or not copy.exists():
        return config
    return dataclasses.replace(config, tokenizer=str(copy.resolve()))


def read_tokenizer(path: Path) -> Any:
    """The tokenizer that a run was trained with; None where its tokens are bytes or numbers."""
    path = run_of(path)
    if not (path / "tokenizer.json").exists():
        return None
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise UserError("tokenizer: this run needs tokenizers; run pip install 'retain[hub]'") from None
    try:
        return Tokenizer.from_str((path / "tokenizer.json").read_text(encoding="utf-8"))
    except Exception as error:
        if type(error) not in (Exception, UnicodeDecodeError):  # the library raises no other
            raise
        raise UserError(f"{path / 'tokenizer.json'}: is damaged ({error}); copy the one of --data.tokenizer") from None


def discard(out: Path) -> None:
    """Delete what a run wrote, if it never saved anything, so that another can be trained into its folder."""
    if began(out):
        return
    for name in ("config.json", "data.json", "tokenizer.json", "metrics.jsonl"):
        (out / name).unlink(missing_ok=True)
    for name in ("checkpoints", "trackers"):
        shutil.rmtree(out / name, ignore_errors=True)


def began(out: Path) -> bool:
    """Whether a run ever saved anything that resuming could go on from."""
    checkpoints = (f for f in (out / "checkpoints").glob("*") if not f.name.startswith(".tmp-"))
    return any(checkpoints) or (out / "manifest.json").exists()


def load_run(
    path: str | Path,
    *,
    teacher: bool = False,
    device: str | torch.device = "cpu",
    cell: nn.Module | None = None,
    phase: int | None = None,
) -> Run:
    """The trained run at `path`, in evaluation mode; while training is not over, its best checkpoint so far.

    `phase` (0, 1, …) loads the model as that phase left it instead of the best one.
    Raises UserError where there is no run or no such device, CheckpointError for damaged weights.
    """
    check_device(str(device))
    device = fastest() if str(device) == "auto" else device
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"run: {path} is not a folder; give the folder that `retain train` wrote")
    written = config_of(path)
    config = dataclasses.replace(written, data=own_tokenizer(written.data, path))
    names = ["model", "teacher"] if teacher else ["model"]
    if phase is not None and not 0 <= phase < len(config.phases):
        raise UserError(f"phase: {phase} must lie in 0 … {len(config.phases) - 1}, for {', '.join(config.phases)}")
    if phase is None:
        tensors, state = load_model(path, names, device)
    else:
        tensors, state = load_files(phase_folder(path, config, phase), names, device)
    refuse_other_model(written, state, path)
    if cell is None and (own := state.get("own_cell")):
        raise UserError(f"run: {path} was trained with a cell of your own, {own}; give it, as in load(RUN, cell=…)")
    rnn, guide = build(config, state["vocab_size"], cell)
    fill(rnn, tensors["model"], path)
    if teacher:
        fill(guide, tensors["teacher"], path)
    return Run(path, config, state, rnn.to(device).eval(), guide.to(device).eval() if teacher else None)


def config_of(path: Path) -> RunConfig:
    """The config of a run, or of one of its checkpoints, whose state has it. Raises UserError where there is none."""
    if (path / "config.json").exists():
        return load_config(path / "config.json")
    saved = load_files(path, [])[1].get("config") if run_of(path) != path else None
    if saved is None:
        raise UserError(f"run: {path} holds no config.json; give the folder that `retain train` wrote")
    return from_dict(saved)


def refuse_other_model(config: RunConfig, state: dict[str, Any], path: Path) -> None:
    """A setting that weights do not show, changed in config.json since, would make another RNN of them: UserError."""
    if "config" not in state:
        return  # of an earlier version
    then, now = flatten(to_dict(from_dict(state["config"]))), flatten(to_dict(config))
    for key in sorted(now):
        if key.startswith(("memory.", "teacher.", "cell.")) and then.get(key) != now[key]:
            raise UserError(
                f"run: {path / 'config.json'} was changed: {key} was {then.get(key)!r} when these weights were trained "
                f"and is {now[key]!r} now; put it back"
            )


def start_from(config: RunConfig, data: Data, rnn: RNN, teacher: Teacher, own_cell: str | None = None) -> None:
    """Give both the weights of the run `config.init_from`; the teacher where a phase uses it and the run trained it.

    `own_cell`: the class of a cell that was given in Python. Raises UserError where they do not fit, CheckpointError
    for damaged weights.
    """
    path = Path(config.init_from or "")
    if not (path / "config.json").exists():
        raise UserError(f"init_from: {path} holds no config.json; give the folder that `retain train` wrote")
    source = load_config(path / "config.json")
    phases = config.trained
    with_teacher = guided(path) and bool({"smt", "dmt"} & set(phases))
    untaught = "dmt" in phases and "smt" not in phases[: phases.index("dmt")]
    if untaught and not with_teacher:
        raise UserError(f"init_from: {path} ({', '.join(source.phases)}) has no teacher for dmt to follow")
    # What the shapes of weights do not tell, too.
    same = ["memory.tokens", "memory.width", "memory.norm", "cell.kind", "teacher.heads"]
    read = READ_BY_CELL.get(config.cell.kind, {"heads", "residual"})
    same += [f"cell.{name}" for name in ("heads", "residual") if name in read]
    if with_teacher:
        same += ["teacher.encoder", "teacher.context_len"]
    if untaught and config.dmt.lambda_distill:
        same.append("smt.lambda_trunk")  # whether the trunk was trained, whose probabilities DMT may take
    before, now = flatten(to_dict(source)), flatten(to_dict(config))
    for name in same:
        if before[name] != now[name]:
            raise UserError(
                f"init_from: {path} has {name} {before[name]} and this run {now[name]}; "
                f"give {' '.join(option_of(name, before[name]))}"
            )
    tensors, state = load_model(path, ["model", "teacher"] if with_teacher else ["model"])
    refuse_other_model(source, state, path)
    if (theirs := state.get("own_cell")) != own_cell:
        raise UserError(f"init_from: {path} has {theirs or 'no'} cell of its own, and this run {own_cell or 'none'}")
    if state["vocab_size"] != data.vocab_size:
        raise UserError(
            f"init_from: {path} has a vocabulary of {state['vocab_size']} tokens, this data one of {data.vocab_size}; "
            "give data of the same"
        )
    tokenizer = path / "tokenizer.json"
    if (tokenizer.read_text(encoding="utf-8") if tokenizer.exists() else None) != getattr(data, "tokenizer", None):
        raise UserError(f"init_from: {path} read other tokens; give --data.tokenizer {tokenizer}")
    fill(rnn, tensors["model"], path, "init_from")
    if with_teacher:
        fill(teacher, tensors["teacher"], path, "init_from")


def save(rnn: RNN, config: RunConfig, path: str | Path, *, data: Data | None = None) -> None:
    """Write an RNN that was trained in a loop of one's own as a run folder, for `load`, generate and eval.

    `config` has the memory, teacher (its width, heads and decoder_layers are the readout's) and cell that it was made
    of; a cell of one's own that it does not name is to be given to `load` again. `data`: what `config.data` names,
    loaded, where it was trained on that; without it tokens are numbers, and eval asks for a file.
    Raises UserError where the folder is not empty or the config is not that of the RNN, CheckpointError where the
    disk refuses.
    """
    path = Path(path)
    prepare_folder(config, path, resume=False)
    named = type(build_cell(config.memory, config.cell))
    own = type(rnn.cell) is not named
    if own and type(rnn.cell) in CELLS.values():
        raise UserError(f"config: its cell is a {named.__name__}, the RNN's a {type(rnn.cell).__name__}")
    like = RNN(rnn.vocab_size, config.memory, config.teacher, config.cell, rnn.cell if own else None)
    if own:  # it is the caller's very cell, which stays as it is
        like.cell = nn.Identity()
    like.to(rnn.m_0)
    if own:
        like.cell = rnn.cell
    fill(like, rnn.state_dict(), path, "config")
    token = torch.zeros(1, dtype=torch.long, device=rnn.m_0.device)
    with torch.no_grad(), evaluating(rnn, like):  # settings such as norm, heads, residual have no weights
        pairs = zip(rnn.step(token, rnn.init_memory(1)), like.step(token, rnn.init_memory(1)), strict=True)
        if not all(torch.allclose(mine, its, rtol=1e-3, atol=1e-4, equal_nan=True) for mine, its in pairs):
            raise UserError(
                "config: with these weights it is another RNN; give the memory, teacher and cell of this one"
            )
    state = state_of(config, rnn, data, Progress(), own_cell=type(rnn.cell).__qualname__ if own else None)
    export(path, {"model": rnn.state_dict()}, state)
    try:
        if data is not None:
            keep_data(path, data)
        save_config(config, path / "config.json")
    except OSError as error:
        raise CheckpointError(failed(path, error)) from error


def state_of(
    config: RunConfig, rnn: RNN, data: Data | None, progress: Progress, *, own_cell: str | None
) -> dict[str, Any]:
    """state.json: what a loader needs beside the weights, and where they come from.

    `data` None: of the caller's own loop, of which nothing is known. `own_cell`: the class of a cell that was given in
    Python.
    """
    return {
        "config": to_dict(config),
        "vocab_size": rnn.vocab_size,
        "kind": "tokens" if data is None else data.kind,
        "image_shape": list(data.image_shape) if data is not None and data.image_shape else None,
        "end": getattr(data, "end", None),
        "own_cell": own_cell,
        "own_data": data is None,
        "data": {} if data is None else data.info,
        "progress": dataclasses.asdict(progress),
        "versions": versions(),
        "device": str(rnn.m_0.device),
        "precision": "fp32",
        "processes": 1,
        "threads": torch.get_num_threads(),
    }


def of_this_model(record: dict[str, Any], state: dict[str, Any]) -> bool:
    """Whether what `retain eval` wrote down is of the model with this state, and not of one before it was resumed."""
    return bool(record.get("training_tokens", state["progress"]["tokens"]) == state["progress"]["tokens"])


def versions() -> dict[str, str]:
    return {"retain": __version__, "torch": torch.__version__, "python": platform.python_version()}


def finished(path: Path) -> bool:
    """Whether there is nothing to resume: training is over, or it was done elsewhere and the model put here."""
    return (path / "summary.json").exists() or (
        (path / "manifest.json").exists() and not (path / "checkpoints").exists()
    )


def guided(path: Path) -> bool:
    """Whether the run has a trained teacher: an RNN that was copied without its, to be shipped, stands alone."""
    alone = (path / "manifest.json").exists() and not (path / "teacher.safetensors").exists()
    return not alone and path.is_dir() and config_of(path).has_teacher


def load(path: str | Path, *, device: str | torch.device = "cpu", cell: nn.Module | None = None) -> RNN:
    """The RNN of a run folder, ready to read.

    `memory = rnn.init_memory(batch)`, then `logits, memory = rnn.step(token, memory)` for every token. Nothing in it
    requires a gradient, so that a stream holds on to nothing; `rnn.train().requires_grad_()` to train it further.
    Its weights are float32 and stay so: `torch.autocast`, or `fast_step`, computes in bfloat16.
    `cell` is the user's own cell where the run was trained with one that its config cannot name.
    Raises UserError where there is no run, CheckpointError for damaged weights.
    """
    return load_run(path, device=device, cell=cell).rnn.requires_grad_(False)


def fill(module: nn.Module, tensors: dict[str, torch.Tensor], path: Path, whose: str = "run") -> None:
    """Load its weights. Raises UserError where they are of another shape or name."""
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        detail = " ".join(str(error).split())[:200]
        what = {
            "run": f"the weights in {path} do not fit its config.json",
            "init_from": f"the weights in {path} do not fit this run (--config {path} takes its sizes over)",
            "config": "it is not that of the RNN",
        }
        raise UserError(f"{whose}: {what[whose]}: {detail}") from None
