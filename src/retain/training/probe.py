"""A few training steps, to count what they need."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from torch.utils.flop_counter import FlopCounterMode

from retain.config import PhaseConfig
from retain.data import Data
from retain.objectives import BPTT, DMT, SMT
from retain.ops.graphs import launched
from retain.training.phases import part_of

PROBE_SECONDS = 5.0
"""The probe's batch doubles up to that of the run, as long as its next step should take less than this."""


class Probe:
    """What a sequence needs in one phase, from a few steps: weights get gradients, never an update."""

    def __init__(self, objective: SMT | DMT | BPTT, data: Data, config: PhaseConfig, accelerator: Accelerator) -> None:
        self.objective, self.data, self.config, self.accelerator = objective, data, config, accelerator
        self.batch_size = 1
        self._draw(1)
        self.activations_per_sequence = self._count_activations()
        pair = min(2, config.batch_size)  # with one sequence, no rollouts would start from f's own memory
        self._draw(pair)
        start = time.perf_counter()
        with FlopCounterMode(display=False) as counter, self._in_one_piece(), launched():
            self._step(pair)
        self.flops_per_sequence = counter.get_total_flops() // pair
        seconds = (time.perf_counter() - start) / pair
        if seconds < PROBE_SECONDS:  # counting costs time of its own, which does not matter beside such long steps
            seconds = self._time(1)
        while self.batch_size < config.batch_size and 2 * seconds < PROBE_SECONDS:
            self.batch_size = min(2 * self.batch_size, config.batch_size)
            seconds = self._time(self.batch_size)
        self.seconds_per_sequence = seconds / self.batch_size
        objective.zero_grad(set_to_none=True)

    @contextmanager
    def _in_one_piece(self) -> Iterator[None]:
        """Compute in one piece: the counter cannot follow the backward passes of several. The products are the same."""
        objective = self.objective
        if not isinstance(objective, SMT):
            yield
            return
        config = objective.config
        objective.config = dataclasses.replace(config, num_chunks=1)
        yield
        objective.config = config

    def _draw(self, batch_size: int) -> None:
        """Read the batch of the next steps, apart from them: a stream begins anew each time."""
        self.batch = part_of(self.data.batch(0, 0, 0, batch_size), self.config.seq_len)

    def _step(self, batch_size: int) -> None:
        if len(self.batch["tokens"]) != batch_size:
            self._draw(batch_size)
        with self.accelerator.autocast():
            device = self.accelerator.device
            losses = self.objective({k: v.to(device) for k, v in self.batch.items()} | {"progress": 1.0})
        losses["loss"].backward()
        losses["loss"].detach().item()  # waits for the device

    def _time(self, batch_size: int) -> float:
        for _ in range(2 if self.accelerator.device.type == "cuda" else 1):
            torch.manual_seed(0)  # the same shapes each time
            self._step(batch_size)  # the first also allocates, and on a GPU the second is captured
        torch.manual_seed(0)
        start = time.perf_counter()
        self._step(batch_size)
        return time.perf_counter() - start

    def _count_activations(self) -> int:
        """Count the most bytes kept at one time for the backward pass of one sequence, weights left out."""
        kept = _Kept({p.untyped_storage().data_ptr() for p in self.objective.parameters()})
        with torch.autograd.graph.saved_tensors_hooks(kept.save, lambda saved: saved.tensor), launched():
            self._step(1)
        return kept.most


class _Kept:
    """The storages kept for a backward pass, each counted once; a step in pieces frees some before it is over."""

    def __init__(self, weights: set[int]) -> None:
        self.weights, self.times = weights, Counter[int]()
        self.bytes = self.most = 0

    def save(self, tensor: torch.Tensor) -> _Saved:
        return _Saved(tensor, self)

    def count(self, storage: torch.UntypedStorage, times: int) -> None:
        place = storage.data_ptr()
        if place not in self.weights:
            before, self.times[place] = self.times[place], self.times[place] + times
            self.bytes += storage.nbytes() * ((self.times[place] > 0) - (before > 0))
            self.most = max(self.most, self.bytes)


class _Saved:
    """A saved tensor, counted for as long as it exists."""

    def __init__(self, tensor: torch.Tensor, kept: _Kept) -> None:
        self.tensor, self.kept = tensor, kept
        kept.count(tensor.untyped_storage(), 1)

    def __del__(self) -> None:
        self.kept.count(self.tensor.untyped_storage(), -1)
