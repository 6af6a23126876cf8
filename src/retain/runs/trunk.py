"""The frozen trunk of a run's teacher: a language model, the trunk of another run, or the labels of either."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from retain.config import DocumentDataConfig, RunConfig
from retain.data.batches import Data, Split, StreamData
from retain.data.contexts import continued, longest_pass
from retain.data.files import find_cache_folder
from retain.data.labels import LABELLED, labelled_config, read_manifest, with_labels
from retain.data.paths import absolute
from retain.errors import UserError
from retain.files import replace_file
from retain.model.given import GivenOwnTrunk, GivenTrunk, KeptTrunk
from retain.model.language_model import identify, open_language_model, read_tokenizer
from retain.model.rnn import RNN
from retain.model.teacher import Teacher
from retain.runs.checkpoint import best_checkpoint, load_model
from retain.runs.run import Run, guided, load_run, load_weights, read_config

TABLES = "tables.safetensors"
"""File in a folder of labels: the state before any token, and the model's embeddings and output rows of each token."""


def is_run(source: str) -> bool:
    """Whether `--teacher.from` names a run folder of retain, which may have a teacher."""
    path = Path(source)
    return (path / "state.json").exists() or (path / "checkpoints").is_dir()


def with_source(config: RunConfig, source: str) -> RunConfig:
    """Give a run's teacher the trunk `source`, a language model or a run folder, and its data the source's tokenizer.

    Raises UserError if the source has a tokenizer and the data cannot be read by one.
    """
    source, data, tokenizer = absolute(source), config.data, Path(source) / "tokenizer.json"
    teacher = dataclasses.replace(config.teacher, from_=source)
    if is_run(source) and not tokenizer.exists():
        return dataclasses.replace(config, teacher=teacher)
    if not isinstance(data, DocumentDataConfig):
        raise UserError(
            f"data.name: {data.name} is not read by a tokenizer, and {source} has one; give --data FILE or FOLDER"
        )
    if is_run(source):
        end = getattr(read_config(Path(source)).data, "end", None)
    else:
        found, _, end = read_tokenizer(source)
        content = found.to_str().encode()
        tokenizer = find_cache_folder() / "tokenizers" / f"{hashlib.sha256(content).hexdigest()[:16]}.json"
        if not tokenizer.exists():
            tokenizer.parent.mkdir(parents=True, exist_ok=True)
            replace_file(tokenizer, content)
    data = dataclasses.replace(data, tokenizer=str(tokenizer.resolve()), end=end)
    return dataclasses.replace(config, teacher=teacher, data=data)


def for_teacher(config: RunConfig, data: Data) -> Data:
    """Return the data of a run with its labels, and with the text before its sequences (`teacher.context_before`).

    With a given trunk, windows of a stream start where labels are stored, also without labels. So runs with and without
    labels are the same.

    Raises:
        UserError: The labels are not of this data, or no text lies before its sequences.
    """
    given, source = config.teacher, data
    if config.reads_model:
        if isinstance(data, StreamData):
            data.aligned = True
        data = data if given.labels is None else with_labels(data, Path(given.labels))
    if not given.context_before:
        return data
    live = given.labels is None
    return continued(data, source, given.context_before, teaches=config.reads_model, live=config.reads_model and live)


def for_scoring(config: RunConfig, data: Data) -> Data:
    """Return data for scoring the RNN of a run. Memory is carried over sequences if it was in training."""
    before = config.teacher.context_before
    return continued(data, data, before, teaches=False, live=False) if before else data


def open_trunk(config: RunConfig, data: Data) -> GivenTrunk | None:
    """Load the given trunk of the teacher's encoder; None if the run trains its own trunk.

    Raises UserError if the trunk cannot be loaded or does not fit the data.
    """
    source, layer = config.teacher.from_, config.teacher.layer
    if source is None:
        return None
    if config.teacher.labels is not None:
        return _open_labels(Path(config.teacher.labels), config, data)
    if is_run(source):
        return _open_run(Path(source), layer, data)
    before = config.teacher.context_before
    length = longest_pass(data.seq_len, before) if before else data.seq_len
    what = "teacher.context_before" if before else "data.seq_len"
    trunk = open_language_model(source, getattr(data, "tokenizer", None), layer, length, what)
    if trunk.vocab_size != data.vocab_size:
        raise UserError(f"data.end: None adds a symbol that {source} lacks; name one of its tokenizer")
    return trunk


def _open_labels(folder: Path, config: RunConfig, data: Data) -> KeptTrunk:
    manifest = read_manifest(folder)
    known = {"layer": manifest["trunk"]["layer"], "top_k": manifest["top_k"]}
    for name, kept in (known | {"context_before": manifest.get("context_before", 0)}).items():
        if (asked := getattr(config.teacher, name)) != kept:
            raise UserError(f"teacher.{name}: {asked} is not that of {folder}, {kept}; leave it out, or label anew")
    tables = load_file(folder / TABLES)
    start = tables.pop("start").float()
    return KeptTrunk(start, data.vocab_size, tables, manifest["trunk"])


def with_labels_of(config: RunConfig, folder: Path, source: str | None) -> RunConfig:
    """Let a run read labels instead of the model that made them, on the data that was labelled.

    Raises UserError if `source` is another model.
    """
    manifest = read_manifest(folder)
    trunk = manifest["trunk"]
    if source is not None and identify_trunk(absolute(source), None).get("sha256") != trunk.get("sha256"):
        raise UserError(f"labels: {folder} is of {trunk['from']}, another model than {source}; leave out one of them")
    names = {
        "from_": trunk["from"],
        "layer": trunk["layer"],
        "top_k": manifest["top_k"],
        "context_before": manifest.get("context_before", 0),
        "labels": absolute(str(folder)),
    }
    teacher = dataclasses.replace(config.teacher, **names)
    return dataclasses.replace(config, teacher=teacher, data=labelled_config(folder, manifest))


def _open_run(path: Path, layer: int | None, data: Data) -> GivenOwnTrunk:
    config = read_config(path)
    if config.teacher.from_ is not None:
        raise UserError(f"teacher.from: {path} takes its trunk from {config.teacher.from_}; give that")
    if not guided(path) or config.teacher.encoder in ("window", "store") or not config.smt.lambda_trunk:
        raise UserError(f"teacher.from: {path} trained no trunk; give a run with a state or register encoder and smt")
    run = load_run(path, teacher=True)
    size, tokenizer = run.state["vocab_size"], path / "tokenizer.json"
    if size != data.vocab_size:
        raise UserError(f"teacher.from: {path} has a vocabulary of {size} tokens, this data one of {data.vocab_size}")
    if (tokenizer.read_text(encoding="utf-8") if tokenizer.exists() else None) != getattr(data, "tokenizer", None):
        raise UserError(f"teacher.from: {path} read other tokens; give --data.tokenizer {tokenizer}")
    assert run.teacher is not None
    trunk: Any = run.teacher.encoder.trunk
    return GivenOwnTrunk(trunk, layer, identify_trunk(str(path), layer))


def identify_trunk(source: str, layer: int | None) -> dict[str, Any]:
    """Return what identifies this trunk, without loading it."""
    if not is_run(source):
        return identify(source, layer)
    path = Path(source)
    manifest = (path if (path / "manifest.json").exists() else best_checkpoint(path)) / "manifest.json"
    files = json.loads(manifest.read_text(encoding="utf-8"))["files"]
    return {"from": source, "layer": layer, "sha256": files["teacher.safetensors"]["sha256"]}


def load_guided(run: Run, data: Data, split: Split, source: str | None, labels: str | None) -> tuple[Run, Data]:
    """Load a run's teacher with the language model that it reads with, or with that model's labels.

    Returns:
        The run with its teacher, and the data to score both on.

    Raises:
        UserError: The run has no such teacher, the teacher reads with another model, or the split has no labels.
    """
    own, device = run.config.teacher, run.rnn.m_0.device
    if own.from_ is None or not run.config.has_teacher:
        raise UserError(
            f"teacher.from: {run.path} has no teacher that reads with a model; leave out {source or labels}"
        )
    if labels is not None and split not in LABELLED:
        raise UserError(f"labels: {labels} has none of the {split} split; give --teacher.from, or --split validation")
    path = None if labels is None else absolute(labels)
    teacher = dataclasses.replace(own, from_=own.from_ if source is None else absolute(source), labels=path)
    config = dataclasses.replace(run.config, teacher=teacher)
    trunk = open_trunk(config, data)
    before = run.state.get("teacher_from") or {}
    assert trunk is not None
    if any(trunk.identity.get(key) != before.get(key) for key in ("sha256", "revision")):
        raise UserError(f"teacher.from: {source or labels} is not of the model that {run.path} read with; give that")
    guide = Teacher(run.rnn.vocab_size, config.memory, teacher, trunk=trunk)
    load_weights(guide, load_model(run.path, ["teacher"], device)[0]["teacher"], run.path)
    return dataclasses.replace(run, teacher=guide.to(device).eval()), for_teacher(config, data)


@torch.no_grad()
def start_embeddings(trunk: GivenTrunk, rnn: RNN, teacher: Teacher) -> None:
    """Initialise the embeddings and output layers of RNN and decoder from the trunk's, mapped to their widths.

    A wider layer keeps its random numbers in the columns beyond the trunk's width.
    """
    embeddings, head = (table.float().cpu() for table in trunk.embeddings())
    for weight, table in zip(embeddings_of(rnn, teacher), (embeddings, embeddings, head, head), strict=True):
        mapped = map_to_width(table, weight.shape[1])
        scale = weight.square().mean().sqrt() / mapped.square().mean().sqrt().clamp_min(1e-12)
        weight[:, : mapped.shape[1]] = mapped * scale


def embeddings_of(rnn: RNN, teacher: Teacher) -> tuple[Tensor, ...]:
    """Return the embeddings of RNN and decoder and the output layers of both, (V, width) each."""
    decoder, readout = teacher.decoder, rnn.readout
    assert isinstance(rnn.embed, nn.Embedding)  # a language model reads no series of numbers
    return rnn.embed.weight, decoder.embed.weight, decoder.head.weight, readout.head.weight


def map_to_width(table: Tensor, width: int) -> Tensor:
    """Map the rows of a table (V, W) to at most `width` numbers: to their principal directions if W is larger."""
    if table.shape[1] <= width:
        return table
    centred = table - table.mean(0)
    directions = torch.linalg.eigh(centred.T @ centred).eigenvectors.flip(1)  # (W, W), the largest first
    mapped: Tensor = centred @ directions[:, :width]
    return mapped
