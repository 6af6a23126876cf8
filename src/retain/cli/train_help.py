"""The options of `retain train` that a run reads, and the help that shows them."""

from __future__ import annotations

import argparse
import dataclasses
import typing
from typing import Any, Literal

from retain.config import PHASES, READ_BY_CELL, TASK_DATA, TASK_SIZES, DMTConfig, ImageDataConfig, RunConfig, SMTConfig
from retain.config.json import option_of
from retain.config.model import OF_LANGUAGE_MODEL

TOP = """\
Pretrain an RNN by the phases of a preset, into a run folder.

  --out DIR           the run folder (default: runs/PRESET)
  --resume            continue from the newest checkpoint in --out, with that run's config
  --config FILE       start from this config.json instead of a preset
  --data PATH         the training data: a text, an integer .npy, hf:NAME[:CONFIG][@REVISION] of the Hugging Face hub, a
                      parquet, JSON, CSV or Arrow file, or a folder of texts (each a document), of such files, or of
                      images
  --text-column C     the dataset's column of texts (default: text)
  --image-column C    the dataset's column of images, instead of texts (default: image)
  --teacher.from M    a pretrained causal language model as the teacher's frozen trunk: its folder for transformers, a
                      .gguf file, hf:NAME, or a run folder of retain. The run uses the model's tokenizer. With this
                      option --help also shows the settings of the model
  --labels DIR        labels that `retain label` made with such a model on this data. Training then needs no model
  --recipe R          one-step: no gradient crosses more than one application of f (the paper's recipe, the default with
                      a transformer cell); hybrid: f is trained over windows of steps (the default with other cells);
                      language-model: hybrid, with a frozen language model's states as memories and its output layer
                      (needs --teacher.from or --labels)
  --teacher.trunk delta
                      a trunk of the teacher without attention, which tracks state (docs/limits.md)
  --dry-run           train nothing; print sizes and memory, and FLOPs and time from a few steps (--json: as JSON)
  --quiet             show no progress bar of training
"""
BASIC = {
    "": {"init_from", "seed", "phases", "budget", "device", "precision", "compile"},
    "data": {
        *("seq_len", "tokenizer", "prune_vocab", "stream", "image_size", "thresholds", "symbols", "depth", "pairs"),
        *("time", "series", "target", "covariates", "freq", "head"),
    },
    "memory": {"tokens", "width", "levels"},
    "teacher": {"trunk", "householders", "local", "width", "layers", "future_len", *OF_LANGUAGE_MODEL},
    "cell": {"kind", "width", "layers"},
    "optimizer": set(),
    "smt": {"share", "batch_size", "lr", "lambda_dyn", "bptt_window"},
    "dmt": {"share", "batch_size", "lr", "lambda_dyn", "bptt_window", "horizon"},
    "bptt": {"share", "batch_size", "lr", "bptt_window", "lambda_distill"},
}
"""Common options, which `--help` shows. `--help-all` shows the rest, too."""
ALL_SIZES = {size for sizes in TASK_SIZES.values() for size in sizes}
OF_TEACHER_ALONE = {"encoder", "layers", "future_len", "context_len"}
"""Fields of `teacher` that do not affect the RNN's readout."""


def reason_unread(config: RunConfig, section: str, field: str) -> str | None:
    """Return why a run does not read this setting; None if it does."""
    phases, kind, window = ", ".join(config.phases), config.cell.kind, config.teacher.encoder == "window"
    source = config.teacher.from_
    given = config.teacher
    if source is not None and (section, field) == ("teacher", "layers"):
        return f"the trunk is {source}"
    if given.encoder == "store" and (section, field) == ("teacher", "layers"):
        return "the store encoder has one layer"
    if source is not None and given.trunk_lr is None and (section, field) == ("smt", "lambda_trunk"):
        return f"the trunk is {source}, frozen"
    if source is not None and section == "teacher":
        if field in ("top_k", "temperature") and not distils(config):
            return "no probabilities are learnt (lambda_distill)"
        if field == "trunk_lr" and "smt" not in config.phases:
            return "only smt trains the model"
        if field == "freeze_embeddings" and not given.init_embeddings:
            return "embeddings do not start from the model's (teacher.init_embeddings)"
        if field == "context_before" and isinstance(config.data, ImageDataConfig):
            return "nothing lies before an image"
    if (section, field) == ("smt", "lambda_trunk"):
        if window:
            return "a window encoder has no trunk"
        if config.has_teacher:  # dmt may use the trunk of that teacher
            return None
    if (section, field) == ("data", "freq") and getattr(config.data, "time", None) is None:
        return "steps are only counted (data.time)"
    if field == "lambda_distill" and config.data.name == "series":
        return "it is for tokens, but series are numbers"
    if section in PHASES and field and section not in config.phases:
        return f"{section} is none of this run's phases ({phases})"
    if field == "seq_len" and section in PHASES and config.data.name in ("digits", *TASK_DATA):
        return f"{config.data.name} is read whole"
    if section == "data" and isinstance(config.data, ImageDataConfig) and not config.data.events:
        if field == "seq_len":
            return "images are read whole (data.image_size)"
        if field == "reset":
            return "every image starts from m_0"
    if (section, field) in (("smt", "bptt_window"), ("smt", "num_chunks")) and config.smt.steps_per_sequence == 1:
        return "f is trained on one step of a sequence (smt.steps_per_sequence)"
    if (section, field) == ("dmt", "label_every") and config.dmt.bptt_window != 1:
        return "every step of a window needs its label (dmt.bptt_window)"
    if section == "data" and config.data.name in TASK_DATA and field in ALL_SIZES - set(TASK_SIZES[config.data.name]):
        return f"{config.data.name} has none"
    if section == "cell" and field and field not in READ_BY_CELL.get(kind, {field}):
        return f"a {kind} cell has none"
    if section == "teacher" and field in OF_TEACHER_ALONE and not {"smt", "dmt"} & set(config.phases):
        return f"there is no teacher in a run of {phases}"
    if (section, field) == ("smt", "on_policy") and covers(config.smt, config):
        return "f runs over the whole sequence (smt.bptt_window)"
    if section == "dmt" and (field.startswith("horizon") or field == "rollout") and covers(config.dmt, config):
        return "f runs over the whole sequence (dmt.bptt_window)"
    return None


def distils(config: RunConfig) -> bool:
    """Whether a phase learns the teacher's probabilities."""
    return any(getattr(config, phase).lambda_distill > 0 for phase in config.phases)


def covers(phase: SMTConfig | DMTConfig, config: RunConfig) -> bool:
    """Whether the phase trains f over the whole sequence at once."""
    length = phase.seq_len or config.data.seq_len
    if isinstance(phase, SMTConfig):
        length = min(length, phase.steps_per_sequence or length)
    return phase.bptt_window is None or phase.bptt_window >= length


def list_options(config: RunConfig) -> list[tuple[str, str]]:
    """Return the settings that this run reads and that the command line can set, as (section, field)."""
    found = []
    for field in dataclasses.fields(config):
        part = getattr(config, field.name)
        if dataclasses.is_dataclass(part):
            found += [(field.name, inner.name) for inner in dataclasses.fields(part)]
        else:
            found.append(("", field.name))
    hidden = {("", "preset"), ("data", "name"), ("data", "path"), ("data", "column")}
    hidden |= {("teacher", "from_"), ("teacher", "labels")}
    if config.teacher.from_ is None:
        hidden |= {("teacher", name) for name in OF_LANGUAGE_MODEL} | {("bptt", "lambda_distill")}
        if getattr(config.data, "tokenizer", None) is None:
            hidden |= {("data", "end"), ("data", "prune_vocab")}
    else:  # the model has its tokenizer
        hidden |= {("teacher", "encoder"), ("data", "tokenizer"), ("data", "end")}
        hidden |= {("data", "stream"), ("smt", "steps_per_sequence")}  # of little use: a model labels whole files
    if config.teacher.labels is not None:  # the labels fix these, and are of the frozen model
        hidden |= {("teacher", name) for name in ("layer", "top_k", "context_before", "trunk_lr")}
    if config.teacher.encoder != "window":
        hidden.add(("teacher", "context_len"))
    if config.memory.norm != "fsq":
        hidden.add(("memory", "levels"))
    for section, name, off in (("dmt", "rollout", "loop"), ("dmt", "lambda_dec", 0.0), ("smt", "relative_dyn", False)):
        if getattr(getattr(config, section), name) == off:
            hidden.add((section, name))
    if config.cell.kind == "delta" and config.cell.addresses == "inputs":
        hidden.add(("cell", "addresses"))
    if config.teacher.trunk == "attention":
        hidden |= {("teacher", name) for name in ("trunk", "householders", "local")}
    return [o for o in found if o not in hidden and reason_unread(config, *o) is None]


def print_help(config: RunConfig, prog: str, *, everything: bool) -> None:
    """Print the options that this run reads: the common ones, or everything."""
    parser = argparse.ArgumentParser(prog=prog, usage=f"{prog} [options]", add_help=False)
    groups: dict[str, Any] = {}
    for section, name in list_options(config):
        if not everything and name not in BASIC[section]:
            continue
        part = getattr(config, section) if section else config
        if section not in groups:
            title = f"{section} ({' '.join((type(part).__doc__ or '').split())})" if section else "run"
            groups[section] = parser.add_argument_group(title)
        value, hint = getattr(part, name), typing.get_type_hints(type(part))[name]
        key = f"{section}.{name}" if section else name
        shown = " ".join(map(str, value)) if isinstance(value, tuple) else value
        text = f"{describe_field(type(part), name)} (default: {shown})".lstrip().replace("%", "%%")
        option = f"--{key.replace('_', '-')}"
        if hint is bool:
            groups[section].add_argument(option, *option_of(key, False), action="store_true", help=text)
        else:
            groups[section].add_argument(option, metavar=describe_type(hint), help=text)
    print(f"{parser.format_usage()}\n{TOP}")
    print(parser.format_help().partition("\n\n")[2], end="")
    if not everything:
        print(f"\n{prog} --help-all shows the other options.")


def describe_field(cls: type, name: str) -> str:
    """Return the docstring of a setting in one line, from the class that adds the setting."""
    fields = (getattr(base, "__pydantic_fields__", {}).get(name) for base in cls.__mro__)
    return " ".join(next((f.description for f in fields if f and f.description), "").split())


def describe_type(hint: Any) -> str:
    """Return what stands for a value in the help: N for a whole number, X for a number, S for text, or the choices."""
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is Literal:
        return "{" + ",".join(map(str, arguments)) + "}"
    if typing.get_origin(hint) is tuple:
        return f"{describe_type(arguments[0])} ..."
    if arguments:  # an optional field: X | None
        return describe_type(arguments[0])
    return {int: "N", float: "X"}.get(hint, "S")
