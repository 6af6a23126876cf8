"""The RNN that is left when training is over: embedding, cell, readout and m_0."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn

from retain.config import CellConfig, MemoryConfig, TeacherConfig
from retain.errors import UserError
from retain.model.cells import PROJECTING, LSTMCell, build_cell, check_cell, rolls
from retain.model.fast import fast
from retain.model.shapes import check_axes, check_memory_of
from retain.model.teacher import Readout, Teacher
from retain.ops import graphs
from retain.ops.elementwise import at_least_float32, rms
from retain.ops.stretches import Cut

STEPWISE = (*PROJECTING, LSTMCell)
"""Our own cells that read step by step, so that a GPU replays their steps from graphs; cuDNN has kernels for a whole
`nn.GRU` and `nn.RNN`."""

STEPS_PER_GRAPH = 32
"""Steps of theirs that one CUDA graph holds: the casts of weights are made once for all of them."""


class RNN(nn.Module):
    """Reads a stream at constant memory and constant cost per token, from its own m_0.

    Memory is a plain float32 tensor (B, K, D): save it, copy it, batch it, restore it.
    `cell` may be any `nn.Module` with forward(memory (N, K, D), inputs (N, D)) -> memory; by default the one
    that `cell_config` names. Of `readout` its width, heads and decoder_layers are read: the readout is a decoder's.
    Raises UserError for a cell that returns another shape.
    """

    def __init__(
        self,
        vocab_size: int,
        memory: MemoryConfig,
        readout: TeacherConfig,
        cell_config: CellConfig,
        cell: nn.Module | None = None,
    ):
        super().__init__()
        self.vocab_size, self.normalise = vocab_size, memory.norm == "rms"
        self.embed = nn.Embedding(vocab_size, memory.width)
        self.cell = build_cell(memory, cell_config) if cell is None else check_cell(cell, memory, type(cell).__name__)
        self.readout = Readout(vocab_size, memory, readout)
        self.m_0 = nn.Parameter(torch.randn(memory.tokens, memory.width))

    @property
    def projects(self) -> bool:
        """Whether the cell takes its input as already projected; a user's, made of ours, need not."""
        return type(self.cell) in PROJECTING

    @property
    def depth(self) -> int:
        """Layers of one application of f, as sequential steps are counted."""
        return int(getattr(self.cell, "depth", 1))

    def init_memory(self, batch: int) -> Tensor:
        """The memory before any token, (B, K, D): a copy, the caller's own."""
        return self.m_0.repeat(batch, 1, 1)

    def inputs(self, tokens: Tensor) -> Tensor:
        """Tokens (...) as the cell takes them, (..., D): embedded, and projected where the cell is PROJECTING."""
        if not self.projects:
            return self.embed(tokens)
        project: Any = self.cell.from_input
        if tokens.numel() < self.vocab_size:
            projected: Tensor = project(self.embed(tokens))
            return projected
        # A product for every token that there is costs less than one for every token that is read. The gradients of a
        # token's many places are added up in float32: in bfloat16 a large sum does not grow any more.
        table = project(self.embed.weight)
        return nn.functional.embedding(tokens, at_least_float32(table)).to(table.dtype)

    def update(self, memory: Tensor, tokens: Tensor) -> Tensor:
        """f: memory (..., K, D) and tokens (...) → the next memory, float32. All positions are independent.

        Raises UserError unless there is one memory for each token; so do all methods that read.
        """
        check_memory_of(memory, tokens.shape, self.m_0.shape)
        return self.advance(memory, self.inputs(tokens.flatten()))

    def advance(self, memory: Tensor, inputs: Tensor) -> Tensor:
        """`update` with inputs as `inputs` gives them, flattened."""
        memory = at_least_float32(memory)
        settings = {"projected": True} if self.projects else {}
        new = fast(self.cell)(memory.flatten(0, -3), inputs, **settings).to(memory.dtype)
        return (rms(new) if self.normalise else new).view(memory.shape)

    def step(self, token: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Read one token (B,) into memory (B, K, D) → logits (B, V) of what comes next, and the new memory."""
        check_axes("token", token, "B")
        memory = self.update(memory, token)
        return at_least_float32(self.readout(memory)), memory

    @property
    def cuts(self) -> bool:
        """Whether `rollout(cut=…)` goes back through all stretches side by side; if not, one after another."""
        return not self.normalise and rolls(self.cell) and bool(getattr(self.cell, "cuts", False))

    def rollout(self, tokens: Tensor, memory: Tensor, cut: Cut | None = None) -> Tensor:
        """Memories after each of the tokens (B, T), read one after another from memory (B, K, D): (B, T, K, D).

        `cut` = (first, every): no gradient flows back past token `first` < `every`, nor past each `every`-th after it.
        """
        check_axes("tokens", tokens, "B, T")
        check_memory_of(memory, tokens.shape[:1], self.m_0.shape)
        if cut is not None and not self.cuts:
            first, every = cut
            memories = []
            for stretch in tokens.tensor_split(list(range(first or every, tokens.shape[1], every)), 1):
                memories.append(self.rollout(stretch, memory))
                memory = memories[-1][:, -1].detach()
            return torch.cat(memories, 1)
        if not tokens.shape[1]:
            return memory.new_zeros(len(tokens), 0, *memory.shape[1:])
        inputs, memory = self.inputs(tokens), at_least_float32(memory)
        if self.cuts or type(self.cell) not in STEPWISE or not graphs.capturable([memory]):
            return self._read(memory, inputs, cut)[0]
        # A GPU replays our own cells, STEPS_PER_GRAPH steps at a time.
        memories, replayed = [], _graphs_of(self)
        for part in inputs.split(STEPS_PER_GRAPH, 1):
            memories += replayed(memory, part)
            memory = memories[-1][:, -1]
        return torch.cat(memories, 1)

    def _read(self, memory: Tensor, inputs: Tensor, cut: Cut | None = None) -> tuple[Tensor]:
        """Memories after each of the inputs (B, T, …), by the cell's own `rollout` where it has one."""
        if rolls(self.cell) and not self.normalise:
            settings: dict[str, Any] = {"projected": True} if self.projects else {}
            if cut is not None:
                settings["cut"] = cut
            return (at_least_float32(self.cell.rollout(memory, inputs, **settings)),)  # type: ignore[operator]
        memories = []
        for x in inputs.unbind(1):
            memory = self.advance(memory, x)
            memories.append(memory)
        return (torch.stack(memories, 1),)

    def forward(self, tokens: Tensor, memory: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Read tokens (B, T) from memory (B, K, D), m_0 by default → logits (B, T, V) after each, last memory."""
        check_axes("tokens", tokens, "B, T")
        memory = self.init_memory(len(tokens)) if memory is None else memory
        memories = self.rollout(tokens, memory)
        logits = at_least_float32(self.readout(memories))
        # A copy: a view would keep the memories of every step alive.
        return logits, memories[:, -1].clone() if tokens.shape[1] else memory


_GRAPHS: weakref.WeakKeyDictionary[RNN, graphs.Replayed] = weakref.WeakKeyDictionary()


def _graphs_of(rnn: RNN) -> graphs.Replayed:
    """The graphs of this RNN's rollouts, which go when it goes, and with no copy of it."""
    known = _GRAPHS.get(rnn)
    if known is None or known.module is None or known.module() is not rnn.cell:
        method = weakref.WeakMethod(rnn._read)
        known = _GRAPHS[rnn] = graphs.Replayed(lambda *args: method()(*args), rnn.cell)  # type: ignore[misc]
    return known


def check_alike(teacher: Teacher, rnn: RNN) -> None:
    """Raises UserError where they do not have one memory, one normalisation of it and one vocabulary."""
    norm = "rms" if rnn.normalise else "batch"
    theirs = {
        "memory.norm": (teacher.norm.kind, norm),
        "memory": ((len(teacher.decoder.positions), teacher.decoder.from_memory.in_features), tuple(rnn.m_0.shape)),
        "vocab_size": (teacher.decoder.head.out_features, rnn.vocab_size),
    }
    for name, (of_teacher, of_rnn) in theirs.items():
        if of_teacher != of_rnn:
            raise UserError(f"{name}: {of_teacher} of the teacher is not the RNN's, {of_rnn}; give both one config")
