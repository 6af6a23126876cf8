"""The one loop that runs phases: SMT, DMT, BPTT, on one process or many."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import shlex
import sys
import threading
import time
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from tqdm import tqdm

from retain.config import PhaseConfig, RunConfig
from retain.config.budget import Budget, parse_budget
from retain.config.json import from_dict, save_config
from retain.data import Data, load_data
from retain.data.prefetch import Prefetch
from retain.data.scan import told
from retain.errors import ChangedData, CheckpointError, Interrupted, TrainingError, UserError
from retain.files import replace_file
from retain.inference.evaluate import batch_for, evaluate
from retain.model.compiling import fast_parts
from retain.model.fast import using
from retain.model.rnn import RNN
from retain.model.teacher import Teacher
from retain.objectives import BPTT, DMT, SMT
from retain.ops.graphs import forget
from retain.runs.checkpoint import (
    Loaded,
    best_checkpoint,
    checkpoints,
    export,
    latest_checkpoint,
    load_files,
    save_checkpoint,
    save_files,
)
from retain.runs.lock import alone
from retain.runs.metrics import append_line, truncate_after
from retain.runs.optimizer_state import load_optimizer, optimizer_tensors
from retain.runs.progress import Clock, Every, Progress, stop_signals
from retain.runs.run import (
    began,
    build,
    discard,
    fill,
    keep_data,
    own_tokenizer,
    phase_folder,
    prepare_folder,
    refuse_change,
    same_data,
    start_from,
    state_of,
)
from retain.streams import is_terminal
from retain.training.accelerator import keep_pages, make_accelerator, start_trackers
from retain.training.phases import learning_rate, objective_of, part_of, seed_of
from retain.training.processes import agreed, together

log = logging.getLogger("retain")

UNSEEN = 100
"""Steps whose losses may stay on a device before the host waits for them."""
STOPPED = (KeyboardInterrupt, Interrupted)
"""A run that was stopped before it saved anything leaves nothing in the way of the next."""


def train(
    config: RunConfig,
    out: str | Path,
    *,
    resume: bool = False,
    cell: nn.Module | None = None,
    data: Data | None = None,
    progress_bar: bool = True,
) -> dict[str, Any]:
    """Train the phases of `config` and write everything into the run folder `out`; returns its summary.

    `cell`: the user's own cell in place of the one the config names (see `retain.model.cells`). `data`: a
    `retain.data.Data` or anything with its methods and attributes, in place of what the config names. `resume` goes on
    from the newest checkpoint, bit for bit where budgets are in steps or tokens. The model exported at the end is the
    one of the best validation. Raises UserError for what the user got wrong, TrainingError for a loss that is not
    finite, CheckpointError where the disk refuses, Interrupted on Ctrl-C, SIGTERM or SIGHUP after a checkpoint.
    """
    out = Path(out)
    accelerator = make_accelerator(config, out)
    with ExitStack() as held, ExitStack() as connected:
        connected.callback(accelerator.end_training)  # processes must not die while they are connected
        together(accelerator, lambda: prepare_folder(config, out, resume))
        own_data = data is not None
        data = load_data(own_tokenizer(config.data, out)) if data is None else data
        torch.manual_seed(config.seed)
        rnn, teacher = build(config, data.vocab_size, cell)
        if config.init_from is not None and not began(out):
            start_from(config, data, rnn, teacher, None if cell is None else type(cell).__qualname__)
        if accelerator.device.type == "cpu":
            keep_pages()
        main = accelerator.is_main_process
        if resume:
            same_data(out, data)

        say = "stopping after this step; Ctrl-C again stops at once and saves nothing"
        stop = held.enter_context(stop_signals(say))

        def hold() -> None:
            held.enter_context(alone(out))
            prepare_folder(config, out, resume)  # another run may have come in between
            if not resume:
                held.push(lambda kind, *_: discard(out) if kind and issubclass(kind, STOPPED) else None)

        together(accelerator, hold)
        if main and not (resume and began(out)):
            save_config(config, out / "config.json")
        if main and not began(out):
            keep_data(out, data)
        if main and data.info.get("read"):
            log.warning("%s", told(data.info["read"]))
        accelerator.wait_for_everyone()
        start_trackers(accelerator, config, out)
        rnn.to(accelerator.device)
        teacher.to(accelerator.device)
        loop = Loop(config, out, accelerator, data, rnn, teacher, cell is not None, own_data, progress_bar and main)
        try:
            return loop.run(resume, stop)
        finally:
            loop.batches.close()


class Loop:
    """The state that the training loop carries from step to step."""

    def __init__(
        self,
        config: RunConfig,
        out: Path,
        accelerator: Accelerator,
        data: Data,
        rnn: RNN,
        teacher: Teacher,
        own_cell: bool,
        own_data: bool,
        bar: bool,
    ):
        self.config, self.out, self.accelerator, self.data = config, out, accelerator, data
        self.rnn, self.teacher, self.bar, self.own_data = rnn, teacher, bar, own_data
        self.own_cell = type(rnn.cell).__qualname__ if own_cell else None
        self.main = accelerator.is_main_process
        self.progress = Progress()
        self.saved_at: int | None = None
        self.budgets = config.budgets()
        pin = accelerator.device.type == "cuda"
        self.batches = Prefetch(data, config.seed, accelerator.process_index, pin=pin)
        self.logged_at = (0.0, 0.0, 0)
        """Seconds of training, seconds of waiting for data, and tokens, when a step was last logged."""
        self.unseen: list[tuple[int, list[str], torch.Tensor]] = []
        """Losses that are still on the device only: the step, their names and values."""
        self.record: dict[str, float] = {}
        """The losses that were looked at last."""
        # Of the phase that is run:
        self.objective: SMT | DMT | BPTT
        self.optimizer: Any
        self.named: list[tuple[str, nn.Parameter]]

    def run(self, resume: bool, stop: threading.Event) -> dict[str, Any]:
        saved = None
        if resume:
            if began(self.out):
                saved = load_files(latest_checkpoint(self.out), device=self.accelerator.device)
                if "config" in saved[1]:  # config.json may have been changed since
                    trained = from_dict(saved[1]["config"])
                    refuse_change(trained, self.config, self.out, "put it back in config.json")
                now, before = self.accelerator.num_processes, saved[1]["processes"]
                if now != before:
                    raise UserError(
                        f"resume: {self.out} was trained by {before} processes, and they are {now} now; start as many "
                        f"({before} × batch_size is one batch), or train into a new --out"
                    )
                self.same_as(saved[1])
                if self.main:
                    save_config(self.config, self.out / "config.json")  # what may change has changed
                self.progress = Progress(**saved[1]["progress"])
                self.logged_at = (self.progress.seconds, 0.0, self.progress.tokens)
            elif self.main:
                log.warning("%s: stopped before its first checkpoint; starting it from the beginning", self.out)
            if self.main:
                p = self.progress
                truncate_after(self.out / "metrics.jsonl", p.step, validated=p.validated == p.step)
        first = self.progress.phase
        self.prepare_batch(first)  # while parts are compiled and an optimizer is built
        for line in self.config.left_out() if self.main else ():
            log.warning("%s", line)
        last: int | None = None
        with using(fast_parts(self.rnn, self.teacher, self.config.compile)):
            for index in (i for i, budget in enumerate(self.budgets) if i >= first and budget.amount):
                if index > first or saved is None:
                    if last is not None:
                        self.go_on_reading(last, index)
                    self.progress.phase = index
                    self.progress.phase_step = self.progress.phase_tokens = self.progress.phase_sequential = 0
                    self.progress.phase_seconds = 0.0
                self.run_phase(index, saved if index == first else None, stop)
                last = index
        return self.finish()

    def prepare_batch(self, index: int) -> None:
        """Begin with a phase's next batch, where it has a step left: else a stream would be read up to it in vain."""
        p, budget = self.progress, self.budget_of(index)
        if p.spent(budget.unit) < budget.amount:
            self.batches.begin(p.micro_batches, getattr(self.config, self.config.phases[index]).batch_size)

    def same_as(self, state: dict[str, Any]) -> None:
        """Refuse to go on with another cell or other data than was given in Python; say what else is not alike."""
        for what, key, given in (("cell", "own_cell", self.own_cell), ("data", "own_data", self.own_data)):
            before = state.get(key) or None
            if before != (given or None):
                how = f"give it, as in train(config, out, resume=True, {what}=…)" if before else f"leave out {what}="
                whose = f"{what} of its own" if before else f"the {what} that its config names"
                raise UserError(f"resume: {self.out} was trained with {whose}; {how}")
        now = self.state()
        for name in ("precision", "device", "threads"):
            then = str(state.get(name)).partition(":")[0]
            if self.main and then != str(now[name]).partition(":")[0]:
                change = f"{name} was {then} and is {now[name]}"
                log.warning("%s: %s now, so that it does not go on bit for bit", self.out, change)

    def go_on_reading(self, last: int, index: int) -> None:
        """A phase of smaller batches goes on where the last one stopped, as a stream cannot go back."""
        before, now = (getattr(self.config, self.config.phases[i]).batch_size for i in (last, index))
        read = self.progress.micro_batches
        if before != now and self.batches.data.info.get("streamed"):
            read += 1  # the next one was prepared already, in the old size
        self.progress.micro_batches = max(self.progress.micro_batches, -(-read * before // now))

    def budget_of(self, index: int) -> Budget:
        """The budget of a phase. Where all share one, what those before it took beyond theirs is not given twice, and
        what a first step took that compiles is shared by all."""
        budget, p = self.budgets[index], self.progress
        if not self.one_budget:
            return budget
        left = max(0.0, 1 - p.compiling_seconds / sum(b.amount for b in self.budgets))
        before = p.compiling_seconds + left * sum(b.amount for b in self.budgets[:index])
        beyond = p.total(budget.unit) - p.spent(budget.unit) - before
        least = 1e-3 if budget.unit == "s" else 1
        return dataclasses.replace(budget, amount=max(least, left * budget.amount - max(0, beyond)))

    @property
    def one_budget(self) -> bool:
        """Whether the phases share one budget, and none has its own."""
        return not any(getattr(self.config, name).budget for name in self.config.phases)

    def run_phase(self, index: int, saved: Loaded | None, stop: threading.Event) -> None:
        name, budget, p = self.config.phases[index], self.budget_of(index), self.progress
        config: PhaseConfig = getattr(self.config, name)
        self.prepare_batch(index)
        objective = objective_of(index, self.config, self.rnn, self.teacher)
        objective.zero_grad()  # a user's cell may bring gradients of its own
        named = [(n, q) for n, q in objective.named_parameters() if q.requires_grad]
        optimizer = torch.optim.AdamW(
            [q for _, q in named],
            lr=config.lr,
            betas=self.config.optimizer.betas,
            weight_decay=self.config.optimizer.weight_decay,
            fused=self.accelerator.device.type in ("cpu", "cuda"),
        )
        if saved is not None:
            tensors, state = saved
            fill(self.rnn, tensors["model"], self.out)
            fill(self.teacher, tensors["teacher"], self.out)
            load_optimizer(optimizer, named, tensors["optimizer"], state["optimizer"])
        wrapped, self.optimizer = self.accelerator.prepare(objective, optimizer)
        self.objective, self.named = objective, named
        every = {
            "checkpoint": Every(parse_budget(self.config.checkpoint_every), p),
            "validate": Every(parse_budget(self.config.validate_every), p),
        }
        clock = Clock(p)
        # Where phases count alike, what is left is left of the run.
        alike = len({b.unit for b in self.budgets}) == 1
        whole = sum(b.amount for b in self.budgets) if alike else budget.amount

        def over() -> float:
            return min(p.total(budget.unit) if alike else p.spent(budget.unit), whole)

        bar = tqdm(
            total=whole, initial=over(), unit=budget.unit, desc=name,
            disable=not self.bar or sys.stderr is None,
            mininterval=0.5 if is_terminal(sys.stderr) else 10, dynamic_ncols=True,
            bar_format="{desc} {percentage:3.0f}% |{bar}| {n:.0f}/{total:.0f} {unit}, ETA {remaining}{postfix}",
        )  # fmt: skip
        try:
            while True:
                done, halt = agreed(self.accelerator, p.spent(budget.unit) / budget.amount, stop.is_set())
                if halt:
                    if not p.step:
                        raise Interrupted("interrupted before the first step; nothing is saved")
                    self.checkpoint()
                    several = self.accelerator.num_processes
                    start = f"torchrun --nproc-per-node {several} -m retain" if several > 1 else "retain"
                    again = f"{start} train --out {shlex.quote(str(self.out))} --resume"
                    if self.own_cell or self.own_data:
                        again = "retain.train(config, out, resume=True, …) and the same cell and data"
                    raise Interrupted(f"stopped at step {p.step} and saved; go on with: {again}")
                if done >= 1:
                    break
                logged = p.step % self.config.log_every == 0
                record = self.step(wrapped, config, done, logged)
                clock.tick()
                if self.config.compile and p.step == 1 and budget.unit == "s" and self.one_budget:
                    p.compiling_seconds = p.phase_seconds
                    budget = self.budget_of(index)
                if logged and self.main:
                    self.log(record | self.since_logged())
                speed = p.phase_tokens / max(p.phase_seconds, 1e-9)
                bar.set_postfix_str(f"loss {record['loss']:.3f}, {speed:,.0f} tokens/s", refresh=False)
                bar.update(over() - bar.n)
                due: float = every["validate"].due(p)
                if every["validate"].budget.unit == "s":
                    (due,) = agreed(self.accelerator, due)
                if due:
                    self.validate()
                    clock.tick()
                if every["checkpoint"].due(p):
                    self.checkpoint()
                    clock.tick()
            objective.finish()
            if p.validated != p.step:
                self.validate()
            self.checkpoint()
            if self.main:
                # Checkpoints rotate; what a phase did can only be shown by the model that it left.
                folder = phase_folder(self.out, self.config, index)
                tensors = {"model": self.rnn.state_dict(), "teacher": self.teacher.state_dict()}
                save_files(folder, tensors, self.state(), previous=checkpoints(self.out))
            clock.tick()
        except ChangedData as error:  # between two steps
            self.checkpoint()
            raise TrainingError(f"{error}, and add --resume; stopped at step {p.step} and saved") from None
        finally:
            bar.close()
            forget()
            self.accelerator.free_memory()

    def step(self, wrapped: nn.Module, config: PhaseConfig, done: float, logged: bool) -> dict[str, float]:
        """One optimizer step of the objective, `wrapped` for several processes; returns losses as numbers, each the
        mean over its micro-batches: this step's if it is `logged` or on a CPU, else those that were looked at last.

        Raises TrainingError if one is not finite, at once or when it is looked at.
        """
        p = self.progress
        seed = seed_of(self.config.seed, p.step)
        lr = learning_rate(config, self.config.optimizer.warmup, done)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        first = p.micro_batches
        # All of them before anything changes: the data may refuse one.
        taken = [
            self.batches.take(first + micro, config.batch_size)
            for micro in range(self.config.optimizer.gradient_accumulation_steps)
        ]
        parts, length = [], 0  # kept on the device: to read them waits for it
        for micro in range(self.config.optimizer.gradient_accumulation_steps):
            # All that is random in a step follows from (seed, step), so that resuming needs no generator's state.
            torch.manual_seed(seed + micro)
            batch: dict[str, Any] = part_of(taken[micro], config.seq_len)
            p.micro_batches += 1
            count, length = batch["tokens"].numel(), max(length, batch["tokens"].shape[1])
            batch = {k: v.to(self.accelerator.device, non_blocking=True) for k, v in batch.items()} | {"progress": done}
            last = micro == self.config.optimizer.gradient_accumulation_steps - 1
            with nullcontext() if last else self.accelerator.no_sync(wrapped):
                losses = wrapped(batch)
                self.accelerator.backward(losses["loss"] / self.config.optimizer.gradient_accumulation_steps)
            parts.append(torch.stack([*losses.values()]).detach().float())
            p.tokens += count * self.accelerator.num_processes
            p.phase_tokens += count * self.accelerator.num_processes
        norms = self.gradient_norms() if logged else {}
        norms["gradient_norm"] = self.accelerator.clip_grad_norm_(
            wrapped.parameters(), self.config.optimizer.max_grad_norm
        )
        values = torch.cat([torch.stack(parts).mean(0), torch.stack([*norms.values()]).detach().float()])
        if self.accelerator.num_processes > 1 and logged:
            values = self.accelerator.reduce(values, "mean")
        self.unseen.append((p.step, [*losses, *norms], values))
        first = not self.record or p.phase_step == 0
        if logged or first or not self.waits or len(self.unseen) == UNSEEN:
            self.look()
        self.optimizer.step()
        self.optimizer.zero_grad()
        p.step += 1
        p.phase_step += 1
        # Micro-batches do not wait for each other: however many there are, the chain is the longest of them.
        sequential = self.objective.sequential_steps(length, done)
        p.sequential += sequential
        p.phase_sequential += sequential
        return self.record | {"lr": lr}

    @property
    def waits(self) -> bool:
        """Whether to look at numbers waits for the device that computes them."""
        return self.accelerator.device.type != "cpu"

    def look(self) -> None:
        """Fetch the losses of all steps since the last look. Raises TrainingError for the first that is not finite: so
        this comes before anything is made of the weights, a line, a validation or a checkpoint."""
        if not self.unseen:
            return
        unseen, self.unseen = self.unseen, []
        numbers = iter(torch.cat([values for *_, values in unseen]).tolist())  # one wait for all
        for step, names, _ in unseen:
            self.record = {name: next(numbers) for name in names}
            for name, value in sorted(self.record.items(), key=lambda item: item[0] == "loss"):  # the sum comes last
                if not math.isfinite(value):
                    self.refuse(name, value, step)

    def gradient_norms(self) -> dict[str, torch.Tensor]:
        """Of the RNN's gradient and of the teacher's, where it has one, before they are clipped together."""
        found = {}
        for name, model in (("rnn", self.rnn), ("teacher", self.teacher)):
            if gradients := [p.grad for p in model.parameters() if p.grad is not None]:
                found[f"gradient_norm_{name}"] = nn.utils.get_total_norm(gradients)
        return found

    def since_logged(self) -> dict[str, float]:
        """Speed since the last logged step, with all that took time, and the share of it that was waiting for data."""
        before, self.logged_at = self.logged_at, (self.progress.seconds, self.batches.waited, self.progress.tokens)
        seconds, waited, tokens = (now - then for now, then in zip(self.logged_at, before, strict=True))
        seconds = max(seconds, 1e-9)
        return {"tokens_per_second": round(tokens / seconds, 1), "data_wait": waited / seconds}

    def refuse(self, name: str, value: float, step: int) -> None:
        try:
            good = f"the last good checkpoint is {latest_checkpoint(self.out)}"
        except (CheckpointError, OSError):
            good = f"there is no checkpoint yet, so delete {self.out}"
        phase = self.config.phases[self.progress.phase]
        raise TrainingError(f"{name} became {value} at step {step} in phase {phase}; {good}; try a lower {phase}.lr")

    def log(self, record: dict[str, Any]) -> None:
        p = self.progress
        line = {
            "step": p.step,
            "phase": self.config.phases[p.phase],
            "seconds": round(p.seconds, 3),
            "tokens": p.tokens,
            "sequential_steps": p.sequential,
            **record,
        }
        append_line(self.out / "metrics.jsonl", line)
        numbers = {k: v for k, v in line.items() if isinstance(v, (int, float)) and k != "step"}
        self.accelerator.log(numbers, step=p.step)

    def validate(self) -> None:
        """Score the RNN alone on validation; the best so far is checkpointed, and exported in the end."""
        self.look()
        if self.main:
            self.objective.finish()
            start = time.perf_counter()
            guide = self.teacher if self.config.has_teacher else None  # else nothing ever trained it
            limit = self.config.validation_sequences
            # In float32 whatever training is in, so that it is the figure that `retain eval` gives, on any machine.
            result = evaluate(self.rnn, guide, self.data.windows("validation", batch_for(self.data, self.rnn), limit))
            self.progress.validated = self.progress.step
            value = result["bits_per_token"]
            keep = ("bits_per_token", "accuracy", "teacher_bits_per_token", "teacher_accuracy", "relative_drift")
            record = {f"validation_{k}": result[k] for k in keep if result[k] is not None}
            self.log(record | {"validation_seconds": time.perf_counter() - start})
            if value < self.progress.best_value:
                self.progress.best_step, self.progress.best_value = self.progress.step, value
                self.saved_at = None  # a checkpoint of this step made before does not know that it is the best
                self.checkpoint()
        self.progress.validated = self.progress.step
        self.accelerator.wait_for_everyone()

    def checkpoint(self) -> None:
        """Save model, teacher, optimizer and progress, once per step."""
        self.look()
        p = self.progress
        if not self.main or self.saved_at == p.step:
            return
        self.objective.finish()
        inner = getattr(self.optimizer, "optimizer", self.optimizer)
        tensors, rest = optimizer_tensors(inner, self.named)
        save_checkpoint(
            self.out,
            p.step,
            {"model": self.rnn.state_dict(), "teacher": self.teacher.state_dict(), "optimizer": tensors},
            self.state() | {"optimizer": rest},
            best=p.best_step,
        )
        self.saved_at = p.step

    def state(self) -> dict[str, Any]:
        """What a loader needs beside the weights, and where they come from."""
        a = self.accelerator
        state = state_of(self.config, self.rnn, self.data, self.progress, own_cell=self.own_cell)
        return state | {
            "own_data": self.own_data,
            "precision": a.mixed_precision if a.mixed_precision != "no" else "fp32",
            "processes": a.num_processes,
        }

    def finish(self) -> dict[str, Any]:
        """Export the best model and write summary.json."""
        p = self.progress
        summary: dict[str, Any] = {}
        if self.main:
            tensors, state = load_files(best_checkpoint(self.out), ["model", "teacher"])
            state.pop("optimizer", None)
            export(self.out, tensors, state)
            summary = {
                "preset": self.config.preset,
                "phases": list(self.config.trained),
                "steps": p.step,
                "seconds": p.seconds,
                "tokens": p.tokens,
                "sequential_steps": p.sequential,
                "best_step": p.best_step,
                "validation_bits_per_token": p.best_value if math.isfinite(p.best_value) else None,
                "parameters": sum(q.numel() for q in self.rnn.parameters()),
                "teacher_parameters": sum(q.numel() for q in self.teacher.parameters()),
                **{key: value for key, value in self.state().items() if key not in ("config", "progress")},
                "progress": dataclasses.asdict(p)
                | {"best_value": p.best_value if math.isfinite(p.best_value) else None},
            }
            replace_file(self.out / "summary.json", json.dumps(summary, indent=2).encode() + b"\n")
        self.accelerator.wait_for_everyone()
        return summary
