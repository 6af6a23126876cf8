"""The RNN, which is kept after training: embedding, cell, readout and m_0."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn

from retain.config import CellConfig, Channels, MemoryConfig, Symbols, TeacherConfig
from retain.errors import UserError
from retain.model.cells import PROJECTING, LSTMCell, build_cell, check_cell, has_own_rollout, step_through
from retain.model.embeddings import NumberEmbedding
from retain.model.fast import fast
from retain.model.likelihood import count_scores
from retain.model.shapes import check_axes, check_memory_of
from retain.model.teacher import Readout, Teacher
from retain.ops import graphs
from retain.ops.elementwise import at_least_float32, rms
from retain.ops.fsq import quantise, unbound
from retain.ops.windows import Cut

STEPWISE = (*PROJECTING, LSTMCell)
"""Cells that read step by step, so that a GPU replays their steps from graphs. A whole `nn.GRU` or `nn.RNN` has cuDNN
kernels instead."""

STEPS_PER_GRAPH = 32
"""Steps of such a cell in one CUDA graph, which casts the weights once for all of them."""


class RNN(nn.Module):
    """A recurrent network that reads a stream at constant memory and constant cost per token, from a learnt m_0.

    Memory is a plain float32 tensor (B, K, D): save it, copy it, batch it, restore it.

    Args:
        symbols: V, the number of tokens, or the channels of a stream of numbers. The tokens of numbers have one more
            axis. Their logits are the parameters of the distribution by which `readout.likelihood` scores.
        memory: K memory tokens of width D, and how they are normalised.
        readout: The config of a decoder, of which only width, heads and decoder_layers are read.
        cell_config: The cell f to build.
        cell: An `nn.Module` to use instead, with forward(memory (N, K, D), inputs (N, D)) -> memory.

    Raises:
        UserError: The cell returns another shape.
    """

    def __init__(
        self,
        symbols: Symbols,
        memory: MemoryConfig,
        readout: TeacherConfig,
        cell_config: CellConfig,
        cell: nn.Module | None = None,
    ):
        super().__init__()
        self.symbols, self.vocab_size = symbols, count_scores(symbols)
        self.norm, self.levels = memory.norm, memory.levels
        embed = nn.Embedding if isinstance(symbols, int) else NumberEmbedding
        self.embed: nn.Embedding | NumberEmbedding = embed(symbols, memory.width)  # type: ignore[arg-type]
        self.cell = build_cell(memory, cell_config) if cell is None else check_cell(cell, memory, type(cell).__name__)
        self.readout = Readout(symbols, memory, readout)
        m_0 = torch.randn(memory.tokens, memory.width)
        self.m_0 = nn.Parameter(m_0.tanh() if memory.norm == "fsq" else m_0)

    @property
    def normalise(self) -> bool:
        """Whether the cell's output is normalised."""
        return self.norm in ("rms", "fsq")

    @property
    def channels(self) -> Channels | None:
        """What a step of numbers holds; None if steps are tokens."""
        return self.symbols if isinstance(self.symbols, Channels) else None

    @property
    def projects(self) -> bool:
        """Whether the cell takes inputs that are projected already. A user's subclass of one in PROJECTING need not."""
        return type(self.cell) in PROJECTING

    @property
    def depth(self) -> int:
        """The layers of one application of f, in the count of sequential steps."""
        return int(getattr(self.cell, "depth", 1))

    def init_memory(self, batch: int) -> Tensor:
        """Return the memory before any token, (B, K, D), as a copy that the caller may change."""
        m_0 = quantise(unbound(self.m_0, self.levels), self.levels) if self.norm == "fsq" else self.m_0
        return m_0.repeat(batch, 1, 1)

    def inputs(self, tokens: Tensor) -> Tensor:
        """Embed tokens (...) as (..., D), and project them if the cell is PROJECTING."""
        project: Any = self.cell.from_input if self.projects else None
        if project is not None and self.channels is None and tokens.numel() >= self.vocab_size:
            # Projecting each token of the vocabulary once costs less than projecting each token of the batch, as the
            # naive twin below does. A token's gradients are added up in float32, because in bfloat16 a large sum stops
            # growing.
            table: Tensor = project(self.embed.weight)
            return nn.functional.embedding(tokens, at_least_float32(table)).to(table.dtype)
        embedded: Tensor = self.embed(tokens)
        return embedded if project is None else project(embedded)

    def update(self, memory: Tensor, tokens: Tensor) -> Tensor:
        """Apply f to each pair of memory (..., K, D) and token (...), and return the next memory in float32.

        Raises:
            UserError: There is not one memory for each token. All methods that read tokens raise this.
        """
        streams = tokens.shape if self.channels is None else tokens.shape[:-1]
        check_memory_of(memory, streams, self.m_0.shape)
        return self.advance(memory, self.inputs(tokens.flatten(0, len(streams) - 1)))

    def advance(self, memory: Tensor, inputs: Tensor) -> Tensor:
        """Apply f like `update`, but to the flattened result of `inputs`."""
        memory = at_least_float32(memory)
        settings = {"projected": True} if self.projects else {}
        # The cell gets values that round to the fsq memory. So a cell that returns its input keeps the memory.
        read = unbound(memory, self.levels) if self.norm == "fsq" else memory
        new = fast(self.cell)(read.flatten(0, -3), inputs, **settings).to(memory.dtype).view(memory.shape)
        if self.norm == "fsq":
            return quantise(new, self.levels)
        return rms(new) if self.norm == "rms" else new

    def step(self, token: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Read one token.

        Args:
            token: (B,).
            memory: (B, K, D).

        Returns:
            The logits of the next target, (B, V), and the new memory, (B, K, D).
        """
        check_axes("token", token, "B", self.channels)
        memory = self.update(memory, token)
        return at_least_float32(self.readout(memory)), memory

    @property
    def cuts(self) -> bool:
        """Whether the backward pass of `rollout(cut=…)` computes all windows in parallel, not one after another."""
        return not self.normalise and has_own_rollout(self.cell) and bool(getattr(self.cell, "cuts", False))

    def rollout(self, tokens: Tensor, memory: Tensor, cut: Cut | None = None) -> Tensor:
        """Read tokens one after another.

        Args:
            tokens: (B, T).
            memory: The memory to start from, (B, K, D).
            cut: (first, every): no gradient flows back past token `first` < `every` or each `every`-th token after it.

        Returns:
            The memories after each token, (B, T, K, D).
        """
        check_axes("tokens", tokens, "B, T", self.channels)
        check_memory_of(memory, tokens.shape[:1], self.m_0.shape)
        if cut is not None and not self.cuts:
            first, every = cut
            memories = []
            for window in tokens.tensor_split(list(range(first or every, tokens.shape[1], every)), 1):
                memories.append(self.rollout(window, memory))
                memory = memories[-1][:, -1].detach()
            return torch.cat(memories, 1)
        if not tokens.shape[1]:
            return memory.new_zeros(len(tokens), 0, *memory.shape[1:])
        inputs, memory = self.inputs(tokens), at_least_float32(memory)
        if self.cuts or type(self.cell) not in STEPWISE or not graphs.is_capturable([memory]):
            return self._read(memory, inputs, cut)[0]
        # A GPU replays the cells in STEPWISE, STEPS_PER_GRAPH steps at a time.
        memories, replayed = [], _graphs_of(self)
        for part in inputs.split(STEPS_PER_GRAPH, 1):
            memories += replayed(memory, part)
            memory = memories[-1][:, -1]
        return torch.cat(memories, 1)

    def _read(self, memory: Tensor, inputs: Tensor, cut: Cut | None = None) -> tuple[Tensor]:
        """Return the memories after each of the inputs (B, T, …), by the cell's own `rollout` if it has one."""
        if has_own_rollout(self.cell) and not self.normalise:
            settings: dict[str, Any] = {"projected": True} if self.projects else {}
            if cut is not None:
                settings["cut"] = cut
            return (at_least_float32(self.cell.rollout(memory, inputs, **settings)),)  # type: ignore[operator]
        return (step_through(self.advance, memory, inputs),)

    def forward(self, tokens: Tensor, memory: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Read tokens and predict after each.

        Args:
            tokens: (B, T).
            memory: The memory to start from, (B, K, D); m_0 by default.

        Returns:
            The logits after each token, (B, T, V), and the last memory, (B, K, D).
        """
        check_axes("tokens", tokens, "B, T", self.channels)
        memory = self.init_memory(len(tokens)) if memory is None else memory
        memories = self.rollout(tokens, memory)
        logits = at_least_float32(self.readout(memories))
        # A copy: a view would keep the memories of every step alive.
        return logits, memories[:, -1].clone() if tokens.shape[1] else memory


_GRAPHS: weakref.WeakKeyDictionary[RNN, graphs.Replayed] = weakref.WeakKeyDictionary()


def _graphs_of(rnn: RNN) -> graphs.Replayed:
    """Return the CUDA graphs of this RNN's rollouts. They are freed with the RNN. A copy of the RNN has none."""
    known = _GRAPHS.get(rnn)
    if known is None or known.module is None or known.module() is not rnn.cell:
        method = weakref.WeakMethod(rnn._read)
        known = _GRAPHS[rnn] = graphs.Replayed(lambda *args: method()(*args), rnn.cell)  # type: ignore[misc]
    return known


def check_alike(teacher: Teacher, rnn: RNN) -> None:
    """Raise UserError unless teacher and RNN have the same memory shape, memory norm and vocabulary."""
    theirs = {
        "memory.norm": (teacher.norm.kind, rnn.norm),
        "memory.levels": (teacher.norm.levels, rnn.levels),
        "memory": ((len(teacher.decoder.positions), teacher.decoder.from_memory.in_features), tuple(rnn.m_0.shape)),
        "vocab_size": (teacher.decoder.head.out_features, rnn.vocab_size),
    }
    for name, (of_teacher, of_rnn) in theirs.items():
        if of_teacher != of_rnn:
            raise UserError(f"{name}: the teacher has {of_teacher}, the RNN {of_rnn}; build both from one config")
