"""Settings of the models: memory, teacher and cell."""

from __future__ import annotations

import math
import re
from typing import Annotated, Literal

from pydantic import Field

from retain.config.checks import Count, Depth, Positive, Tokens, Width, settings
from retain.errors import UserError

CELLS = ("transformer", "mlp", "gated", "delta", "gru", "lstm", "elman")
READ_BY_CELL: dict[str, set[str]] = {
    "transformer": {"kind", "width", "heads", "layers", "residual"},
    "mlp": {"kind", "width", "layers", "residual"},
    "gated": {"kind", "width", "layers"},
    "delta": {"kind", "width", "addresses"},
    "gru": {"kind"},
    "lstm": {"kind"},
    "elman": {"kind"},
}
"""Fields of `cell` that each kind reads. A custom cell may read any of them."""


OF_LANGUAGE_MODEL = (
    *("labels", "layer", "top_k", "temperature", "context_before", "trunk_lr", "init_embeddings", "freeze_embeddings"),
)
"""Fields of `teacher` that apply to a model given by teacher.from."""


@settings
class MemoryConfig:
    """The memory, shared by teacher and RNN: K memory tokens of width D."""

    tokens: Width = 2
    """K, number of memory tokens."""
    width: Width = 128
    """D, width of a memory token."""
    norm: Literal["rms", "batch", "fsq", "none"] = "batch"
    """rms: unit RMS over D (the paper). batch: unit variance per dimension, by batch statistics. fsq: each number is
    rounded to one of a few levels. none: for the store encoder alone."""
    levels: Count = 5
    """fsq: number of levels."""

    def __post_init__(self) -> None:
        if self.levels < 2:
            raise UserError(f"memory.levels: {self.levels} cannot store anything; give at least 2")
        if self.levels != 5 and self.norm != "fsq":
            raise UserError(f"memory.levels: {self.levels} needs memory.norm fsq; give that, too")


@settings
class TeacherConfig:
    """Memory encoder and predictive decoder. The readout has the decoder's shape."""

    encoder: Literal["state", "register", "window", "store"] = "state"
    """state: one causal pass labels every step. register: K registers per step. window: the paper's encoder. store: a
    layer of DeltaNet, whose memories have the form of the delta cell's."""
    trunk: Literal["attention", "delta"] = "attention"
    """Layers of the state encoder. attention: a Transformer. delta: gated DeltaNet, which tracks state
    without attention."""
    householders: Annotated[int, Field(gt=0, le=64)] = 2
    """delta: Householder reflections per token and layer. A permutation of n items needs up to n - 1 in all layers
    together."""
    local: Annotated[int, Field(gt=0, le=64)] = 1
    """delta: how many of the latest tokens a position reads at once. 1 is best for tracking state, 4 for text."""
    width: Width = 128
    heads: Width = 4
    layers: Depth = 3
    """Layers of the encoder."""
    decoder_layers: Depth = 1
    """Layers of the decoder, and of the RNN's readout."""
    future_len: Tokens = 16
    """F, how many tokens after m_t the decoder reads."""
    context_len: Count | None = None
    """C, how many tokens the window encoder reads. None: all."""
    from_: str | None = None
    """A pretrained causal language model as the frozen trunk of the state encoder: its folder, a .gguf file, hf:NAME,
    or a run folder of retain."""
    labels: str | None = None
    """The folder of labels that `retain label` made with that model. Training then does not need the model."""
    layer: Count | None = None
    """The layer of the language model whose hidden states are used, counted from 1. None: the last."""
    top_k: Count = 32
    """How many of the largest probabilities at each position loss_distill uses. The rest of the probability is spread
    evenly over the other tokens."""
    temperature: Positive = 1.0
    """Softmax temperature in loss_distill."""
    context_before: Tokens = 0
    """The language model also reads this many tokens before each sequence, or up to twice as many, but only within the
    same document. The RNN starts from the memory after these tokens, and its scores carry memory over sequences."""
    trunk_lr: Positive | None = None
    """Learning rate of the language model's weights in SMT. None: frozen."""
    init_embeddings: bool = False
    """Initialise embeddings and output layers from the language model's, mapped to the widths of RNN and decoder."""
    freeze_embeddings: bool = False
    """Keep these embeddings and output layers fixed."""

    def __post_init__(self) -> None:
        if self.from_ is not None and self.encoder != "state":
            raise UserError(f"teacher.from: {self.from_} needs the state encoder, not {self.encoder}; give state")
        for name in OF_LANGUAGE_MODEL:
            value = getattr(self, name)
            if self.from_ is None and name != "top_k" and value != getattr(type(self), name):
                raise UserError(f"teacher.{name}: {value} needs teacher.from; leave it out")
        if self.trunk_lr is not None and self.labels is not None:
            raise UserError(
                f"teacher.trunk_lr: {self.trunk_lr} trains the model, but {self.labels} has labels of the frozen one; "
                "leave out trunk_lr or labels"
            )
        if self.freeze_embeddings and not self.init_embeddings:
            raise UserError("teacher.freeze_embeddings: they would stay random; give teacher.init_embeddings, too")
        if self.trunk == "delta" and (self.encoder != "state" or self.from_ is not None):
            reads = f"the trunk is {self.from_}" if self.from_ else f"the encoder is {self.encoder}"
            raise UserError(f"teacher.trunk: delta is a trunk of the state encoder, but {reads}; leave it out")
        for name, default in (("householders", 2), ("local", 1)):
            if self.trunk != "delta" and getattr(self, name) != default:
                raise UserError(f"teacher.{name}: {getattr(self, name)} needs teacher.trunk delta; give that, too")
        if self.width % (2 * self.heads):
            raise UserError(f"teacher.width: {self.width} must be a multiple of 2 x heads = {2 * self.heads}")
        if self.context_len is not None and self.encoder != "window":
            raise UserError(f"teacher.context_len: only the window encoder has one, not {self.encoder}; leave it out")


@settings
class CellConfig:
    """The one-step update m_{t+1} = f(m_t, x_t)."""

    kind: str = "mlp"
    """transformer, mlp, gated, delta, gru, lstm, elman, or a custom cell as module:Class."""
    width: Width = 512
    """Hidden width of the mlp, gated, delta and transformer. gru, lstm and elman have the memory's size."""
    heads: Width = 4
    """Attention heads of the transformer."""
    layers: Depth = 1
    """Hidden layers of the mlp and gated, blocks of the transformer. Other cells have one layer."""
    residual: bool = True
    """mlp and transformer: m + f(m, x) instead of f(m, x)."""
    addresses: Literal["inputs", "memory"] = "inputs"
    """delta: what gives the addresses. inputs: the last four inputs. memory: the register, too, as in old versions."""

    def __post_init__(self) -> None:
        if self.kind not in CELLS and not re.fullmatch(r"[\w.]+:\w+", self.kind):
            raise UserError(f"cell.kind: {self.kind!r} is none of {', '.join(CELLS)}, nor module:Class")
        if self.kind == "transformer" and self.width % (2 * self.heads):
            raise UserError(f"cell.width: {self.width} must be a multiple of 2 x heads = {2 * self.heads}")


def check_memory(memory: MemoryConfig, kind: str) -> None:
    """Raise UserError for a memory that a cell of this kind cannot have."""
    sizes, side = f"memory: {memory.tokens} x {memory.width}", math.isqrt(memory.width)
    if kind == "lstm" and memory.tokens * memory.width % 2:
        raise UserError(f"{sizes} must be even, as the lstm keeps h and c in it")
    if kind == "delta" and (memory.tokens < 3 or side % 2 or side**2 != memory.width):
        raise UserError(
            f"{sizes}: the delta cell needs 3 memory tokens or more and a width that is the square of an even number; "
            "give e.g. memory.tokens 4 and memory.width 256"
        )
