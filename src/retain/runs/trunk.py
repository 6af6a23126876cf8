"""The frozen trunk of a run's teacher: a language model, the trunk of another run, or the labels of either."""

from __future__ import annotations

import copy
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
from retain.model.given import GivenEncoder, GivenOwnTrunk, GivenTrunk, KeptTrunk
from retain.model.language_model import identify, open_language_model, read_tokenizer, read_width
from retain.model.rnn import RNN
from retain.model.teacher import Teacher
from retain.objectives.losses import kept_labels
from retain.runs.checkpoint import best_checkpoint, load_model
from retain.runs.run import Run, guided, load_run, load_weights, read_config

TABLES = "tables.safetensors"
"""File in a folder of labels: the state before any token, and the model's embeddings and output rows of each token."""
CALIBRATED = 16
"""Training sequences from which the scale of a language model's states is taken."""


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
    if config.reads_model:
        return for_model(config, data)
    before = config.teacher.context_before
    return continued(data, data, before, teaches=False, live=False) if before else data


def for_model(config: RunConfig, data: Data) -> Data:
    """Return data whose batches hold the language model's labels, or what the model reads before the sequences."""
    given = config.teacher
    if isinstance(data, StreamData):
        data = copy.copy(data)
        data.aligned = True
    source = data
    if given.labels is not None:
        data = with_labels(data, Path(given.labels))
    if not given.context_before:
        return data
    return continued(data, source, given.context_before, teaches=True, live=given.labels is None)


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


def find_width(config: RunConfig) -> int:
    """Return how many numbers the hidden states of a run's language model have, without loading its weights.

    Raises:
        UserError: The run has no language model.
    """
    given = config.teacher
    if given.from_ is None or is_run(given.from_):
        said = f", and {given.from_} is a run folder" if given.from_ else ""
        raise UserError(f"recipe: language-model needs a language model{said}; give --teacher.from M or --labels DIR")
    if given.labels is not None:
        width: int = read_manifest(Path(given.labels))["width"]
        return width
    return read_width(given.from_)


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
def start_embeddings(config: RunConfig, trunk: GivenTrunk, rnn: RNN, teacher: Teacher, data: Data) -> None:
    """Initialise embeddings and output layers of RNN and decoder from the trunk's, so that they predict as it does.

    Tables are mapped to the widths of the layers. A wider layer keeps its random numbers in the columns beyond the
    trunk's width. The last memory token begins as the trunk's state, in the principal directions of its output layer.
    Decoder and readout begin as the map back, on the scale that the states have in a batch of training data.
    """
    embeddings, head = (table.float().cpu() for table in trunk.embeddings())
    assert isinstance(rnn.embed, nn.Embedding)  # a language model reads no series of numbers
    for weight in (rnn.embed.weight, teacher.decoder.embed.weight):
        mapped = embeddings @ basis_of(embeddings, weight.shape[1])
        scale = weight.square().mean().sqrt() / mapped.square().mean().sqrt().clamp_min(1e-12)
        weight[:, : mapped.shape[1]] = mapped * scale

    width, size = rnn.readout.head.in_features, rnn.m_0.shape[1]
    basis, kept = basis_of(head, width), principal_directions(head)[:, :size]
    batch = for_model(config, data).batch(0, 0, 0, CALIBRATED)
    memory = trunk(batch["tokens"], False, kept_labels(batch))[0].flatten(0, 1) @ kept  # (N, D)
    std, mean = torch.ones(memory.shape[1]), torch.zeros(memory.shape[1])
    if teacher.norm.kind == "batch":
        std, mean = memory.std(0, correction=0), memory.mean(0)
    back = basis.T @ kept  # from memory to what the head reads
    assert isinstance(teacher.encoder, GivenEncoder)
    teacher.encoder.to_memory.weight[-size:][: memory.shape[1]] = kept.T
    for readout in (teacher.decoder, rnn.readout):
        readout.head.weight[:, : basis.shape[1]] = head @ basis
        readout.head.bias.zero_()
        readout.from_memory.weight.zero_()
        readout.from_memory.weight[: len(back), : len(std)] = back * std
        readout.from_memory.bias.zero_()
        readout.from_memory.bias[: len(back)] = back @ mean
        readout.positions[-1] = 0
        readout.transformer.norm.gain.fill_(((memory @ back.T).square().sum(-1) / width).sqrt().mean())


def embeddings_of(rnn: RNN, teacher: Teacher) -> tuple[Tensor, ...]:
    """Return the embeddings of RNN and decoder and the output layers of both, (V, width) each."""
    decoder, readout = teacher.decoder, rnn.readout
    assert isinstance(rnn.embed, nn.Embedding)  # a language model reads no series of numbers
    return rnn.embed.weight, decoder.embed.weight, decoder.head.weight, readout.head.weight


def basis_of(table: Tensor, width: int) -> Tensor:
    """Return the map (W, at most `width`) of a table's rows (V, W) to a layer: the identity, or principal directions.

    Orthonormal columns keep the distances of rows as well as so few numbers can.
    """
    size = table.shape[1]
    return torch.eye(size).to(table) if size <= width else principal_directions(table)[:, :width]


def principal_directions(table: Tensor) -> Tensor:
    """Return the principal directions (W, W) of the rows of a table (V, W), as columns, the largest first."""
    centred = table - table.mean(0)
    directions: Tensor = torch.linalg.eigh(centred.T @ centred).eigenvectors
    return directions.flip(1)
