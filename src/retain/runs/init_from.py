"""Starting a run from the weights of another."""

from __future__ import annotations

from pathlib import Path

from retain.config import READ_BY_CELL, RunConfig
from retain.config.json import flatten, load_config, option_of, to_dict
from retain.data.batches import Data
from retain.errors import UserError
from retain.model.rnn import RNN
from retain.model.teacher import Teacher
from retain.runs.checkpoint import load_model
from retain.runs.run import has_teacher, load_weights, refuse_other_model


def start_from(config: RunConfig, data: Data, rnn: RNN, teacher: Teacher, own_cell: str | None = None) -> None:
    """Load the weights of the run `config.init_from`, with the teacher's if a phase uses it and that run trained it.

    `own_cell` is the class of a cell given in Python. Raises UserError if the weights do not fit, CheckpointError if
    they are damaged.
    """
    path = Path(config.init_from or "")
    if not (path / "config.json").exists():
        raise UserError(f"init_from: {path} holds no config.json; give the folder that `retain train` wrote")
    source = load_config(path / "config.json", drop=True)
    phases = config.trained
    with_teacher = has_teacher(path) and bool({"smt", "dmt"} & set(phases))
    untaught = "dmt" in phases and "smt" not in phases[: phases.index("dmt")]
    if untaught and not with_teacher:
        raise UserError(f"init_from: {path} ({', '.join(source.phases)}) has no teacher for dmt to follow")
    # Some of these settings do not show in the shapes of weights.
    same = ["memory.tokens", "memory.width", "memory.norm", "memory.levels", "cell.kind", "teacher.heads"]
    read = READ_BY_CELL.get(config.cell.kind, {"heads", "residual"})
    same += [f"cell.{name}" for name in ("heads", "residual", "addresses") if name in read]
    if with_teacher:
        same += [
            *("teacher.encoder", "teacher.trunk", "teacher.local", "teacher.context_len"),
            *("teacher.from_", "teacher.layer", "teacher.trunk_lr"),
        ]
    if untaught and config.dmt.lambda_distill:
        same.append("smt.lambda_trunk")  # DMT may take the probabilities of the trunk, which must be trained
    before, now = flatten(to_dict(source)), flatten(to_dict(config))
    for name in same:
        if before[name] != now[name]:
            raise UserError(
                f"init_from: {path} has {name.rstrip('_')} {before[name]} and this run {now[name]}; "
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
    load_weights(rnn, tensors["model"], path, "init_from")
    if with_teacher:
        load_weights(teacher, tensors["teacher"], path, "init_from")
