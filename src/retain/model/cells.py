"""Cells f: the one-step update m_{t+1} = f(m_t, x_t).

A cell is any `nn.Module` with `forward(memory, inputs) -> memory`:

Args:
    memory: (N, K, D).
    inputs: The embedded tokens, (N, D).

Returns:
    The next memory, (N, K, D). Each of the N depends only on its own memory and input.

A user's cell is named as module:Class and built as Class(memory_config, cell_config). It may also have

depth: The layers of one application in the count of sequential steps (docs/compare.md); 1 if missing.
rollout(memory, inputs): The memories (N, T, K, D) after each of the inputs (N, T, D), faster than step by step.
cuts: Whether `rollout` takes the `cut` of `RNN.rollout`; False if missing.

The cells of this project are built in the same way. Each names the fields of cell_config that it reads beside `kind`.
They raise UserError if memory and inputs differ in N. Those of PROJECTING take `projected`, if the inputs have been
through `from_input` already. If memory is rms-normalised, the RNN normalises the cell's output.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from retain.config import CellConfig, MemoryConfig, check_memory
from retain.errors import UserError
from retain.model.delta_cell import DeltaCell
from retain.model.layers import Norm, Transformer, start_at_zero
from retain.model.shapes import check_streams
from retain.ops.elementwise import product_dtype, squared_relu
from retain.ops.gated_rollout import gated_rollout
from retain.ops.windows import Cut

REACH = 4.0
"""PyTorch's cells keep each output within ±1. Normalised memory lies within about ±4, so they work on memory / 4."""


class MLPCell(nn.Module):
    """MLP(m, x), or if residual m + MLP(m, x), which need not learn to copy m. Reads width, layers and residual."""

    def __init__(self, memory: MemoryConfig, config: CellConfig):
        super().__init__()
        size = memory.tokens * memory.width
        self.residual, self.depth = config.residual, config.layers
        self.norm = Norm(size)
        self.from_memory = nn.Linear(size, config.width)
        self.from_input = nn.Linear(memory.width, config.width, bias=False)
        self.layers = nn.ModuleList(nn.Linear(config.width, config.width) for _ in range(config.layers - 1))
        self.out = nn.Linear(config.width, size)
        if config.residual:
            start_at_zero(self.out)

    def forward(self, memory: Tensor, inputs: Tensor, projected: bool = False) -> Tensor:
        """Return the next memory (N, K, D) from memory (N, K, D) and inputs (N, D)."""
        check_streams(memory, inputs)
        read = inputs if projected else self.from_input(inputs)
        x = squared_relu(self.from_memory(self.norm(memory.flatten(-2))) + read)
        for layer in self.layers:
            x = squared_relu(layer(x))
        change: Tensor = self.out(x).view(memory.shape)
        return memory + change if self.residual else change


class GatedCell(nn.Module):
    """m + z · (c − m): the candidate c and the gate z are each a linear map of (m, x) plus an MLP of (m, x).

    A residual cell must compute −m to forget, but a gate need not (Hochreiter & Schmidhuber 1997). The linear map can
    move values within memory. Unlike a GRU's, c is unbounded, as normalised memory needs. Reads width and layers.
    """

    def __init__(self, memory: MemoryConfig, config: CellConfig):
        super().__init__()
        size = memory.tokens * memory.width
        # One product of the memory and one of the input give the hidden layer and the linear parts of c and z.
        self.split, self.depth = (config.width, 2 * size), config.layers
        self.norm = Norm(size)
        self.from_memory = nn.Linear(size, sum(self.split))
        self.from_input = nn.Linear(memory.width, sum(self.split), bias=False)
        self.layers = nn.ModuleList(nn.Linear(config.width, config.width) for _ in range(config.layers - 1))
        self.out = nn.Linear(config.width, 2 * size)
        start_at_zero(self.out, gates=size)

    def forward(self, memory: Tensor, inputs: Tensor, projected: bool = False) -> Tensor:
        """Return the next memory (N, K, D) from memory (N, K, D) and inputs (N, D)."""
        check_streams(memory, inputs)
        flat = memory.flatten(-2)
        mixed = self.from_memory(self.norm(flat)) + (inputs if projected else self.from_input(inputs))
        x, linear = mixed.split(self.split, -1)
        x = squared_relu(x)
        for layer in self.layers:
            x = squared_relu(layer(x))
        candidate, gate = (self.out(x) + linear).chunk(2, -1)
        return torch.lerp(flat, candidate.to(flat.dtype), gate.to(flat.dtype).sigmoid()).view(memory.shape)

    @property
    def cuts(self) -> bool:
        """Whether `rollout` takes a cut, which only a cell of one layer does."""
        return not self.layers

    def rollout(self, memory: Tensor, inputs: Tensor, projected: bool = False, cut: Cut | None = None) -> Tensor:
        """Return the memories (B, T, K, D) after each of the inputs (B, T, D), starting from memory (B, K, D)."""
        check_streams(memory, inputs)
        if self.layers:
            return step_through(lambda m, x: self(m, x, projected), memory, inputs)
        dtype = product_dtype(self.out.weight)
        hidden, linear = self.from_memory.bias.split(self.split)
        bias = torch.cat([hidden, linear + self.out.bias])
        # Everything has one dtype from here on: a sum of two dtypes is several times slower.
        read = (inputs if projected else self.from_input(inputs)).to(dtype)
        read = (read.transpose(0, 1) + bias.to(dtype)).contiguous()  # (T, B, H + 2 · S)
        weights = self.from_memory.weight.to(dtype), self.out.weight.to(dtype)
        rolled = gated_rollout(memory.flatten(1), read, self.norm.gain.to(memory.dtype), *weights, cut)  # (T, B, S)
        return torch.unflatten(rolled.transpose(0, 1), -1, memory.shape[1:])


class TransformerCell(nn.Module):
    """The paper's cell: the memory tokens' outputs of a Transformer over the K memory tokens and the input token.

    Reads width, heads, layers and residual.
    """

    def __init__(self, memory: MemoryConfig, config: CellConfig):
        super().__init__()
        self.residual, self.depth = config.residual, config.layers
        self.from_memory = nn.Linear(memory.width, config.width)
        self.from_input = nn.Linear(memory.width, config.width)
        self.positions = nn.Parameter(torch.randn(memory.tokens, config.width) * 0.02)
        self.transformer = Transformer(config.width, config.heads, config.layers)
        self.out = nn.Linear(config.width, memory.width)
        if config.residual:
            start_at_zero(self.out)
            # If the blocks started as the identity, too, the input would not reach `out` until both have changed.
            for block in self.transformer.layers():
                for last in (block.project, block.down):
                    nn.init.normal_(last.weight, std=(2 * config.layers * last.in_features) ** -0.5)

    def forward(self, memory: Tensor, inputs: Tensor, projected: bool = False) -> Tensor:
        """Return the next memory (N, K, D) from memory (N, K, D) and inputs (N, D)."""
        check_streams(memory, inputs)
        tokens = self.from_memory(memory) + self.positions
        x = torch.cat([tokens, (inputs if projected else self.from_input(inputs))[:, None]], 1)
        change: Tensor = self.out(self.transformer(x, keep=slice(0, -1)))
        return memory + change if self.residual else change


PROJECTING = (MLPCell, GatedCell, DeltaCell, TransformerCell)
"""Cells that read an input only through their `from_input`."""


def step_through(step: Callable[[Tensor, Tensor], Tensor], memory: Tensor, inputs: Tensor) -> Tensor:
    """Return the memories (B, T, …) after each of the inputs (B, T, …), computed step by step."""
    memories = []
    for x in inputs.unbind(1):
        memory = step(memory, x)
        memories.append(memory)
    return torch.stack(memories, 1)


def in_own_dtype(memory: Tensor, cell: nn.Module) -> AbstractContextManager[Any]:
    """Disable autocast inside if it would round the whole state of `cell`, one of PyTorch's, at each step."""
    # On a CPU this concerns only `nn.RNN`, whose state is the tanh of a product. Gated cells add up in float32 there.
    halved = memory.is_cuda or isinstance(cell, nn.RNN)
    return torch.autocast(memory.device.type, enabled=False) if halved else nullcontext()


class GRUCell(nn.Module):
    """`nn.GRU` whose state is the flattened memory (Cho et al. 2014)."""

    made_of: ClassVar[Any] = nn.GRU

    def __init__(self, memory: MemoryConfig, config: CellConfig):
        super().__init__()
        self.cell: nn.RNNBase = self.made_of(memory.width, memory.tokens * memory.width, batch_first=True)

    def forward(self, memory: Tensor, inputs: Tensor) -> Tensor:
        """Return the next memory (N, K, D) from memory (N, K, D) and inputs (N, D)."""
        return self.rollout(memory, inputs[:, None])[:, 0]

    def rollout(self, memory: Tensor, inputs: Tensor) -> Tensor:
        """Return the memories (B, T, K, D) after each of the inputs (B, T, D), starting from memory (B, K, D)."""
        check_streams(memory, inputs)
        dtype = next(self.cell.parameters()).dtype
        state = (memory.flatten(1) / REACH)[None]
        with in_own_dtype(memory, self.cell):
            states = self.cell(inputs.to(dtype), state.to(dtype))[0]
        return torch.unflatten(states * REACH, -1, memory.shape[-2:])


class ElmanCell(GRUCell):
    """`nn.RNN`: tanh of a linear map of memory and input (Elman 1990)."""

    made_of = nn.RNN


class LSTMCell(nn.Module):
    """`nn.LSTMCell`; the first half of the flattened memory is h, the second c (Hochreiter & Schmidhuber 1997)."""

    def __init__(self, memory: MemoryConfig, config: CellConfig):
        super().__init__()
        self.cell = nn.LSTMCell(memory.width, memory.tokens * memory.width // 2)

    def forward(self, memory: Tensor, inputs: Tensor) -> Tensor:
        """Return the next memory (N, K, D) from memory (N, K, D) and inputs (N, D)."""
        check_streams(memory, inputs)
        dtype = self.cell.weight_hh.dtype
        h, c = (memory.flatten(1).to(dtype) / REACH).chunk(2, 1)
        with in_own_dtype(memory, self.cell):
            h_c: Tensor = torch.cat(self.cell(inputs.to(dtype), (h, c)), 1)
        return (h_c * REACH).view_as(memory)

    def rollout(self, memory: Tensor, inputs: Tensor) -> Tensor:
        """Return the memories (B, T, K, D) after each of the inputs (B, T, D), starting from memory (B, K, D).

        `nn.LSTM` returns h after each input but c only after the last, and the memory has both. So this is a loop, with
        one product for all inputs before it and one per step. Its naive twin is `forward`, step by step.
        """
        check_streams(memory, inputs)
        cell, states = self.cell, []
        h, c = (memory.flatten(1) / REACH).chunk(2, 1)
        projected = nn.functional.linear(inputs.transpose(0, 1), cell.weight_ih, cell.bias_ih + cell.bias_hh)
        for x in projected:  # (B, 4 · K · D / 2)
            i, f, g, o = (x + h @ cell.weight_hh.t()).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            states.append(torch.cat([h, c], 1))
        return torch.unflatten(torch.stack(states, 1) * REACH, -1, memory.shape[-2:])


CELLS: dict[str, type[nn.Module]] = {
    "transformer": TransformerCell,
    "mlp": MLPCell,
    "gated": GatedCell,
    "delta": DeltaCell,
    "gru": GRUCell,
    "lstm": LSTMCell,
    "elman": ElmanCell,
}


def has_own_rollout(cell: nn.Module) -> bool:
    """Whether the cell has a `rollout` for its `forward`: not one inherited by a subclass that overrides `forward`."""
    for kind in type(cell).__mro__:
        if "rollout" in vars(kind) or "forward" in vars(kind):
            return "rollout" in vars(kind)
    return False


def build_cell(memory: MemoryConfig, config: CellConfig) -> nn.Module:
    """Build the cell that `config.kind` names. Raises UserError if a user's class is not a valid cell."""
    if config.kind in CELLS:
        check_memory(memory, config.kind)
        return CELLS[config.kind](memory, config)
    module, _, name = config.kind.partition(":")
    try:
        cell = getattr(importlib.import_module(module), name)(memory, config)
    except (Exception, SystemExit) as error:
        raise UserError(
            f"cell.kind: cannot build {config.kind} as Class(memory_config, cell_config): {_line(error)}"
        ) from error
    return check_cell(cell, memory, config.kind)


def check_cell(cell: nn.Module, memory: MemoryConfig, name: str) -> nn.Module:
    """Call a cell once on three memories, and return the cell. Raises UserError if it is invalid or mixes memories."""
    if not isinstance(cell, nn.Module):
        raise UserError(f"cell: {name} is a {type(cell).__name__}, not an nn.Module")
    like = next((p for p in cell.parameters() if p.is_floating_point()), torch.empty(0))
    example = torch.linspace(-1, 1, 3 * memory.tokens * memory.width, dtype=like.dtype, device=like.device)
    example = example.view(3, memory.tokens, memory.width)
    read = example.clone().requires_grad_()
    try:
        with torch.enable_grad():  # a cell that changes its memory in place fails here
            out = cell(read, torch.zeros_like(example[:, 0]))
    except Exception as error:
        raise UserError(
            f"cell: {name} must take forward(memory {tuple(example.shape)}, inputs (3, {memory.width})): {_line(error)}"
        ) from error
    if not isinstance(out, Tensor) or out.shape != example.shape or not out.is_floating_point():
        got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise UserError(f"cell: {name} returned {got}, not a memory of shape {tuple(example.shape)}")
    if not out.requires_grad:
        raise UserError(f"cell: {name} returned a memory without a gradient; leave out no_grad and detach")
    try:
        with torch.enable_grad():
            (of_memory,) = torch.autograd.grad((out[0] * example[0]).sum(), read, allow_unused=True)
    except RuntimeError as error:
        raise UserError(f"cell: {name} has no backward pass: {_line(error)}") from error
    # On the meta device, where a model's parameters are counted, there are no values to check.
    seen = of_memory is not None and not of_memory.is_meta
    mixed = seen and bool(of_memory[1:].nan_to_num().any())
    # A branch that starts at zero has no gradient yet, so BatchNorm is looked for by its class as well.
    if mixed or any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in cell.modules()):
        raise UserError(f"cell: {name} lets sequences of a batch read each other's memory; leave out BatchNorm")
    return cell


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
