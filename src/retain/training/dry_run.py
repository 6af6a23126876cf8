"""The costs of a run: sizes, parameters, memory, and FLOPs and time of a few real steps. Writes no run folder."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.flop_counter import FlopCounterMode

from retain.config import PhaseConfig, RunConfig
from retain.config.budget import Budget
from retain.data import SPLITS, Data, load_data
from retain.data.batches import find_symbols
from retain.model.compiling import fast_parts
from retain.model.fast import using
from retain.model.rnn import RNN
from retain.model.teacher import Teacher
from retain.objectives import BPTT, DMT, SMT
from retain.ops.graphs import forget, launched
from retain.runs.run import build
from retain.runs.trunk import for_teacher, open_trunk
from retain.training.accelerator import open_accelerator
from retain.training.phases import cut_part, objective_of

log = logging.getLogger("retain")

PROBE_SECONDS = 5.0
"""The probe's batch size doubles, up to that of the run, while its next step should take less than this."""


def dry_run(config: RunConfig) -> dict[str, Any]:
    """Measure the sizes and costs of a run. Data is prepared; a few steps of each phase are run and discarded.

    Per phase, `flops_per_step` counts matrix products and attention, forward and backward, of one process.
    `activation_bytes` is what one micro-batch keeps for its backward pass. `seconds_per_step` is measured at
    `probed_batch_size` and scaled in proportion to the run's batch size. On a large GPU this is too high rather than
    too low. DMT is probed at its longest rollouts, and mixed lengths at the full length. Returns JSON values, for
    `report_lines`. Raises UserError as `train` does.
    """
    data = for_teacher(config, load_data(config.data.at_length(config.data.seq_len)))
    with open_accelerator(config) as accelerator:
        torch.manual_seed(config.seed)
        rnn, teacher = build(config, find_symbols(data), trunk=open_trunk(config, data))
        rnn.to(accelerator.device)
        teacher.to(accelerator.device)
        for line in config.left_out():
            log.warning("%s", line)
        phases = {}
        with using(fast_parts(rnn, teacher)):
            for index, (name, budget) in enumerate(zip(config.phases, config.budgets(), strict=True)):
                if budget.amount:
                    key = name if name not in phases else f"{name}, phase {index + 1}"
                    phases[key] = _probe_phase(index, budget, config, data, rnn, teacher, accelerator)
    parameters = {"rnn": sum(p.numel() for p in rnn.parameters())}
    parameters["teacher"] = sum(p.numel() for p in teacher.parameters())
    endless = data.info.get("streamed") or data.info.get("sequences", {}).get("train", 0) is None
    # Weights, their gradients and the two moments of AdamW, all in float32.
    weights = 4 * sum(parameters.values()) + 12 * max(phase["trained_parameters"] for phase in phases.values())
    return {
        "preset": config.preset,
        "device": str(accelerator.device),
        "precision": accelerator.mixed_precision if accelerator.mixed_precision != "no" else "fp32",
        "data": data.info,
        # Training data that is generated or streamed has no end.
        "sequences": {split: None if split == "train" and endless else data.count(split) for split in SPLITS},
        "vocab_size": data.vocab_size,
        "seq_len": data.seq_len,
        "memory": [config.memory.tokens, config.memory.width],
        "parameters": parameters,
        "weight_bytes": weights,
        "memory_bytes": weights + max(phase["activation_bytes"] for phase in phases.values()),
        "phases": phases,
        "seconds": sum(phase["seconds"] for phase in phases.values()),
    }


def _probe_phase(
    index: int, budget: Budget, config: RunConfig, data: Data, rnn: RNN, teacher: Teacher, accelerator: Accelerator
) -> dict[str, Any]:
    own: PhaseConfig = getattr(config, config.phases[index])
    objective = objective_of(index, config, rnn, teacher)
    probe = Probe(objective, data, own, accelerator)
    per_step = own.batch_size * config.optimizer.gradient_accumulation_steps
    length = own.seq_len or data.seq_len
    tokens = per_step * length * accelerator.num_processes
    seconds = probe.seconds_per_sequence * per_step
    chain = objective.sequential_steps(length, 1.0)
    amount = {"s": seconds, "steps": 1, "tokens": tokens, "sequential": chain}
    steps = budget.amount / amount[budget.unit]
    found = {
        "budget": str(budget),
        "steps": max(1, round(steps)),
        "tokens_per_step": tokens,
        "trained_parameters": sum(p.numel() for p in objective.parameters() if p.requires_grad),
        "flops_per_step": probe.flops_per_sequence * per_step,
        "flops": probe.flops_per_sequence * per_step * max(1, round(steps)),
        "activation_bytes": probe.activations_per_sequence * own.batch_size,
        "probed_batch_size": probe.batch_size,
        "seconds_per_step": seconds,
        "seconds": budget.amount if budget.unit == "s" else seconds * steps,
    }
    objective.finish()
    forget()
    accelerator.free_memory()
    return found


def format_duration(seconds: float) -> str:
    """Format seconds in a suitable unit."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s" if seconds >= 1 else f"{1000 * seconds:.0f} ms"


def report_lines(found: dict[str, Any]) -> str:
    """Format the result of `dry_run` as text."""
    sizes = ", ".join(f"{split} {count:,}" for split, count in found["sequences"].items() if count is not None)
    parameters = found["parameters"]
    lines = [
        f"{found['preset'] or 'custom'}: dry run on {found['device']}, {found['precision']}; nothing is trained",
        f"  data        {sizes} sequences of T = {found['seq_len']}, vocabulary {found['vocab_size']}",
        f"  RNN         {parameters['rnn']:,} parameters, memory {found['memory'][0]} x {found['memory'][1]}",
        f"  teacher     {parameters['teacher']:,} parameters",
        f"  memory      at least {found['memory_bytes'] / 1e9:.2f} GB: weights, gradients and optimizer "
        f"{found['weight_bytes'] / 1e9:.2f} GB, and the activations",
    ]
    lines += [
        f"  {name:<12}{phase['steps']:,} steps of {phase['tokens_per_step']:,} tokens, "
        f"{phase['flops_per_step'] / 1e12:.3g} TFLOP and {format_duration(phase['seconds_per_step'])} each, "
        f"{phase['activation_bytes'] / 1e9:.2f} GB of activations; {format_duration(phase['seconds'])}"
        for name, phase in found["phases"].items()
    ]
    return "\n".join([*lines, f"  altogether  about {format_duration(found['seconds'])}, validations not counted"])


class Probe:
    """The costs of one sequence in a phase, measured on a few steps. Weights get gradients, never an update."""

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
        if seconds < PROBE_SECONDS:  # time again: counting takes time itself, which matters only in short steps
            seconds = self._time(1)
        while self.batch_size < config.batch_size and 2 * seconds < PROBE_SECONDS:
            self.batch_size = min(2 * self.batch_size, config.batch_size)
            seconds = self._time(self.batch_size)
        self.seconds_per_sequence = seconds / self.batch_size
        objective.zero_grad(set_to_none=True)

    @contextmanager
    def _in_one_piece(self) -> Iterator[None]:
        """Compute in one chunk: the counter cannot follow the backward passes of several. The products are the same."""
        objective = self.objective
        if not isinstance(objective, SMT):
            yield
            return
        config = objective.config
        objective.config = dataclasses.replace(config, num_chunks=1)
        yield
        objective.config = config

    def _draw(self, batch_size: int) -> None:
        """Read the batch of the next steps, outside of them: a stream restarts at every read."""
        self.batch = cut_part(self.data.batch(0, 0, 0, batch_size), self.config.seq_len)

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
            self._step(batch_size)  # the first step also allocates, and on a GPU the second is captured
        torch.manual_seed(0)
        start = time.perf_counter()
        self._step(batch_size)
        return time.perf_counter() - start

    def _count_activations(self) -> int:
        """Return the peak of the bytes kept for the backward pass of one sequence, without weights."""
        kept = _Kept({p.untyped_storage().data_ptr() for p in self.objective.parameters()})
        with torch.autograd.graph.saved_tensors_hooks(kept.save, lambda saved: saved.tensor), launched():
            self._step(1)
        return kept.most


class _Kept:
    """The storages kept for a backward pass, each counted once. A step in chunks frees some before it ends."""

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
