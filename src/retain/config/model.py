"""Settings of the models: memory, teacher and cell."""

from __future__ import annotations

import math
import re
from typing import Literal

from retain.config.checks import Count, Depth, Positive, Tokens, Width, settings
from retain.errors import UserError

CELLS = ("transformer", "mlp", "gated", "delta", "gru", "lstm", "elman")
READ_BY_CELL: dict[str, set[str]] = {
    "transformer": {"kind", "width", "heads", "layers", "residual"},
    "mlp": {"kind", "width", "layers", "residual"},
    "gated": {"kind", "width", "layers"},
    "delta": {"kind", "width"},
    "gru": {"kind"},
    "lstm": {"kind"},
    "elman": {"kind"},
}
"""Fields of `cell` that each kind reads; one's own may read any."""


OF_LANGUAGE_MODEL = (
    *("labels", "layer", "top_k", "temperature", "context_before", "trunk_lr", "init_embeddings", "freeze_embeddings"),
)
"""Fields of `teacher` that say something of the model of teacher.from."""


@settings
class MemoryConfig:
    """The memory, shared by teacher and RNN: K memory tokens of width D."""

    tokens: Width = 2
    """K, number of memory tokens."""
    width: Width = 128
    """D, width of a memory token."""
    norm: Literal["rms", "batch"] = "batch"
    """rms: unit RMS over D (the paper). batch: unit variance per dimension, by batch statistics."""


@settings
class TeacherConfig:
    """Memory encoder and predictive decoder. The readout has the decoder's shape."""

    encoder: Literal["state", "register", "window"] = "state"
    """state: one causal pass labels every step. register: K registers per step. window: the paper's."""
    width: Width = 128
    heads: Width = 4
    layers: Depth = 3
    """Layers of the encoder."""
    decoder_layers: Depth = 1
    """Layers of the decoder, and of the RNN's readout."""
    future_len: Tokens = 16
    """F, how many tokens the decoder is shown after m_t."""
    context_len: Count | None = None
    """C, how far back the window encoder looks; None is all the way."""
    from_: str | None = None
    """A causal language model that exists, as the frozen trunk of the state encoder: its folder, a .gguf file, hf:NAME,
    or a run folder of ours."""
    labels: str | None = None
    """What `retain label` kept of it: training then does without the model."""
    layer: Count | None = None
    """The layer of it whose hidden states are read, from 1 on; None is the last."""
    top_k: Count = 32
    """loss_distill takes so many of its probabilities at each place; what is left is shared out evenly."""
    temperature: Positive = 1.0
    """loss_distill compares probabilities that are softened by this; 1 is as they are."""
    context_before: Tokens = 0
    """It reads so many tokens before a sequence, too, or up to twice as many, but none before a document's first. The
    RNN goes on from what these made, and its scores are of memories that are carried over sequences."""
    trunk_lr: Positive | None = None
    """The learning rate of its weights in SMT; None is frozen."""
    init_embeddings: bool = False
    """Embeddings and output layers start as those of it, mapped to the widths of RNN and decoder."""
    freeze_embeddings: bool = False
    """These embeddings and output layers stay as they start."""

    def __post_init__(self) -> None:
        if self.from_ is not None and self.encoder != "state":
            raise UserError(f"teacher.from: {self.from_} is read by the state encoder, not {self.encoder}; give state")
        for name in OF_LANGUAGE_MODEL:
            value = getattr(self, name)
            if self.from_ is None and name != "top_k" and value != getattr(type(self), name):
                raise UserError(f"teacher.{name}: {value} is read with teacher.from alone; leave it out")
        if self.trunk_lr is not None and self.labels is not None:
            raise UserError(
                f"teacher.trunk_lr: {self.trunk_lr} trains the model, and {self.labels} is of it as it was; leave out "
                "trunk_lr or labels"
            )
        if self.freeze_embeddings and not self.init_embeddings:
            raise UserError("teacher.freeze_embeddings: they would stay random; give teacher.init_embeddings, too")
        if self.width % (2 * self.heads):
            raise UserError(f"teacher.width: {self.width} must be a multiple of 2 x heads = {2 * self.heads}")
        if self.context_len is not None and self.encoder != "window":
            raise UserError(f"teacher.context_len: only the window encoder looks back a set way, not {self.encoder}")


@settings
class CellConfig:
    """The one-step update m_{t+1} = f(m_t, x_t)."""

    kind: str = "mlp"
    """transformer, mlp, gated, delta, gru, lstm, elman, or your own as module:Class."""
    width: Width = 512
    """Hidden width of the mlp, gated, delta and transformer; gru, lstm and elman have the memory's own size."""
    heads: Width = 4
    """Attention heads of the transformer."""
    layers: Depth = 1
    """Hidden layers of the mlp and gated, blocks of the transformer; the others have one."""
    residual: bool = True
    """mlp and transformer: m + f(m, x) instead of f(m, x)."""

    def __post_init__(self) -> None:
        if self.kind not in CELLS and not re.fullmatch(r"[\w.]+:\w+", self.kind):
            raise UserError(f"cell.kind: {self.kind!r} is none of {', '.join(CELLS)}, nor module:Class")
        if self.kind == "transformer" and self.width % (2 * self.heads):
            raise UserError(f"cell.width: {self.width} must be a multiple of 2 x heads = {2 * self.heads}")


def check_memory(memory: MemoryConfig, kind: str) -> None:
    """Raises UserError for a memory that a cell of this kind cannot have."""
    sizes, side = f"memory: {memory.tokens} x {memory.width}", math.isqrt(memory.width)
    if kind == "lstm" and memory.tokens * memory.width % 2:
        raise UserError(f"{sizes} must be even, the lstm keeps h and c in it")
    if kind == "delta" and (memory.tokens < 3 or side % 2 or side**2 != memory.width):
        raise UserError(
            f"{sizes}: the delta cell needs 3 memory tokens or more and a width that is the square of an even number; "
            "give e.g. memory.tokens 4 and memory.width 256"
        )
