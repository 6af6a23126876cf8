"""Training: open the run folder, build the models, train phase after phase, export the best model."""

from __future__ import annotations

import logging
import threading
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import torch
from torch import nn

from retain.config import RunConfig
from retain.config.json import save_config
from retain.data import Data, load_data
from retain.data.batches import find_symbols
from retain.data.scan import told
from retain.errors import ChangedData, Interrupted, TrainingError
from retain.model.compiling import fast_parts
from retain.model.fast import using
from retain.runs.checkpoint import Loaded
from retain.runs.data import keep_data, own_tokenizer, refuse_other_data
from retain.runs.folder import discard, has_begun, prepare_folder
from retain.runs.init_from import start_from
from retain.runs.lock import alone
from retain.runs.progress import Clock, stop_signals
from retain.runs.run import build
from retain.runs.trunk import for_teacher, open_trunk, start_embeddings
from retain.training.accelerator import agree, open_accelerator, start_trackers, together
from retain.training.batches import Batches
from retain.training.budgets import Budgets
from retain.training.checkpointing import Checkpoints, export_best
from retain.training.job import Job
from retain.training.losses_log import LossesLog
from retain.training.phases import start_phase
from retain.training.resume import interrupted, restore
from retain.training.step import take_step
from retain.training.validation import Validation

log = logging.getLogger("retain")

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
    """Train the phases of `config` and write everything into the run folder `out`.

    The model exported at the end is the one of the best validation.

    Args:
        config: Data, models, phases and their budgets.
        out: The run folder, which must be empty or absent unless the run is resumed.
        resume: Go on from the newest checkpoint, bit for bit if budgets are in steps or tokens.
        cell: The user's own cell in place of the one the config names (see `retain.model.cells`).
        data: A `retain.data.Data`, or anything with its methods and attributes, in place of what the config names.
        progress_bar: Show one on stderr.

    Returns:
        What summary.json holds.

    Raises:
        UserError: The user got something wrong.
        TrainingError: A loss is not finite, or the data was changed.
        CheckpointError: The disk refuses.
        Interrupted: Ctrl-C, SIGTERM or SIGHUP, after a checkpoint was saved.
    """
    out = Path(out)
    with ExitStack() as held, open_accelerator(config, out) as accelerator:
        together(accelerator, lambda: prepare_folder(config, out, resume))
        own_data = data is not None
        plain = load_data(own_tokenizer(config.data, out)) if data is None else data
        data = for_teacher(config, plain)
        trunk = open_trunk(config, data)
        torch.manual_seed(config.seed)
        rnn, teacher = build(config, find_symbols(data), cell, trunk)
        if trunk is not None and config.teacher.init_embeddings and not has_begun(out):
            start_embeddings(config, trunk, rnn, teacher, plain)
        own_cell = None if cell is None else type(cell).__qualname__
        if config.init_from is not None and not has_begun(out):
            start_from(config, data, rnn, teacher, own_cell)
        if resume:
            refuse_other_data(out, data)

        say = "stopping after this step; Ctrl-C again stops at once and saves nothing"
        stop = held.enter_context(stop_signals(say))

        def hold() -> None:
            held.enter_context(alone(out))
            prepare_folder(config, out, resume)  # another run may have come in between
            if not resume:
                held.push(lambda kind, *_: discard(out) if kind and issubclass(kind, STOPPED) else None)

        together(accelerator, hold)
        if accelerator.is_main_process:
            if not has_begun(out):
                save_config(config, out / "config.json")
                keep_data(out, data)
            if data.info.get("read"):
                log.warning("%s", told(data.info["read"]))
        accelerator.wait_for_everyone()
        start_trackers(accelerator, config, out)
        rnn.to(accelerator.device)
        teacher.to(accelerator.device)
        job = Job(config, out, accelerator, data, rnn, teacher, own_cell, own_data)
        train_phases(job, restore(job) if resume else None, stop, progress_bar)
        return export_best(job)


def train_phases(job: Job, saved: Loaded | None, stop: threading.Event, progress_bar: bool) -> None:
    """Train the rest of the phases, each until its budget is spent: stop?, step, log, validate, save.

    `saved` is the checkpoint that the first of them goes on from. Every collaborator knows its own schedule.
    """
    config, p = job.config, job.progress
    for line in config.left_out() if job.is_main else ():
        log.warning("%s", line)
    budgets = Budgets(config, p)
    with closing(Batches(job)) as batches, using(fast_parts(job.rnn, job.teacher, config.compile)):
        losses = LossesLog(job, batches)
        for index in budgets.phases_left():
            batches.start_phase(index)
            p.start_phase(index)
            budgets.start_phase()
            if budgets.spent_share() < 1:
                batches.prepare()  # while the optimizer is built
            with start_phase(job, saved) as phase, budgets.open_bar(hidden=not (progress_bar and job.is_main)) as bar:
                saved = None
                checkpoints = Checkpoints(job, phase, losses)
                validation = Validation(job, phase, losses, checkpoints)
                clock = Clock(p)
                try:
                    while True:
                        spent, halt = agree(job.accelerator, budgets.spent_share(), stop.is_set())
                        if halt:
                            if p.step:
                                checkpoints.save()
                            raise interrupted(job)
                        if spent >= 1:
                            break
                        logged = losses.is_due()
                        record = take_step(job, phase, batches, losses, spent, logged)
                        clock.tick()
                        budgets.count_compiling()
                        if logged:
                            losses.write_step(record)
                        budgets.show(bar, record["loss"])
                        if validation.is_due():
                            validation.run()
                            checkpoints.save()
                            clock.tick()
                        if checkpoints.is_due():
                            checkpoints.save()
                            clock.tick()
                    phase.objective.finish()
                    if p.validated != p.step:
                        validation.run()
                    checkpoints.save()
                    checkpoints.save_phase()
                    clock.tick()
                except ChangedData as error:  # between two steps
                    checkpoints.save()
                    raise TrainingError(f"{error}, and add --resume; stopped at step {p.step} and saved") from None
