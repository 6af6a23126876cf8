"""Migration of settings that an earlier version wrote."""

from __future__ import annotations

from typing import Any

from retain.config.budget import parse_budget
from retain.config.data import CLASS_OF, TASK_DATA, TASK_SIZES
from retain.errors import UserError

VERSION = 5
"""Format version of config.json. Files of the first version have no number."""
RENAMED = {"schedule": "lr_schedule", "unroll": "bptt_window", "truncate": "bptt_window", "pieces": "num_chunks"}
SHARED = {"warmup": 0.02, "weight_decay": 0.01, "beta1": 0.9, "beta2": 0.95, "clip": 1.0, "accumulate": 1}
"""Settings that each phase once had and that all phases now share, with their defaults."""
OLD = {*RENAMED, *SHARED, "budget", "sweeps", "horizon_end", "recompute"} - {"warmup", "weight_decay"}
"""Fields by which a file of the first version is recognised."""
DATA_DEFAULTS: dict[str, Any] = {
    "split": [0.9, 0.05, 0.05],
    "label_noise": 0.0,
    "reverse": False,
    "reset": False,
    "stream": False,
    "image_size": 28,
    "levels": 256,
    "invert": False,
    "events": False,
}
"""What the first version wrote for settings that the data does not read. For all others it wrote None."""


def migrate(values: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return a run's settings in the current format, and those that this format lacks, such as "smt.sweeps 2".

    Raises:
        UserError: The version is newer than this one.
    """
    values = {key: dict(value) if isinstance(value, dict) else value for key, value in values.items()}
    sections = [value for value in values.values() if isinstance(value, dict)]
    version = values.pop("version", 1 if any(OLD & section.keys() for section in sections) else VERSION)
    if version not in range(1, VERSION + 1):
        raise UserError(f"version: {version!r} is none that this retain reads (1 … {VERSION}); install a newer one")
    lost: list[str] = []
    if version == 1:
        values, lost = _from_1(values)
    if version < 3:
        _from_2(values, lost)
    if version < 4 and isinstance(dmt := values.get("dmt"), dict):
        schedule = dmt.pop("lr_schedule", "cosine")
        if schedule != "cosine" and "dmt" in values.get("phases", ["smt", "dmt"]):
            lost.append(f"dmt.lr_schedule {schedule}")
    if version < 5 and isinstance(cell := values.get("cell"), dict) and cell.get("kind") == "delta":
        cell["addresses"] = "memory"
    return values, lost


def _from_2(values: dict[str, Any], lost: list[str]) -> None:
    for name in ("log_every", "checkpoint_every"):  # they change no training step
        values.pop(name, None)
    if isinstance(teacher := values.get("teacher"), dict):
        teacher.pop("activation_checkpointing", None)
    optimizer = values.get("optimizer")
    if isinstance(optimizer, dict) and (betas := optimizer.pop("betas", [0.9, 0.95])) != [0.9, 0.95]:
        lost.append(f"optimizer.betas {betas}")
    if isinstance(data := values.get("data"), dict):
        if revision := data.pop("revision", None):
            data["path"] = f"{data.get('path', '')}@{revision}"
        threshold, levels = data.pop("threshold", None), data.pop("levels", 256)
        if threshold is not None:
            data["thresholds"] = [threshold]
        elif levels != 256:
            data["thresholds"] = [-(-256 * level // levels) for level in range(1, levels)]


def _from_1(values: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    lost: list[str] = []
    used = values.get("phases", ["smt", "dmt"])
    for name in used if isinstance(used, list) else ():
        values.setdefault(name, {})
    phases = {name: values[name] for name in ("smt", "dmt", "bptt") if isinstance(values.get(name), dict)}
    trained = {name: phase for name, phase in phases.items() if name in used}
    if isinstance(values.get("teacher"), dict) and "recompute" in values["teacher"]:
        values["teacher"]["activation_checkpointing"] = values["teacher"].pop("recompute")
    _migrate_data(values)
    _migrate_budgets(values, trained, lost)
    optimizer = values.setdefault("optimizer", {})
    for name, default in SHARED.items():
        found = [phase.get(name, default) for phase in trained.values()]
        if any(value != found[0] for value in found):
            lost.append(f"{name} {', '.join(map(str, found))} for each phase")
        if found and found[0] != default:
            optimizer[name] = found[0]
        for phase in phases.values():
            phase.pop(name, None)
    if "beta1" in optimizer or "beta2" in optimizer:
        optimizer["betas"] = [optimizer.pop("beta1", 0.9), optimizer.pop("beta2", 0.95)]
    for old, new in (("clip", "max_grad_norm"), ("accumulate", "gradient_accumulation_steps")):
        if old in optimizer:
            optimizer[new] = optimizer.pop(old)
    for name, phase in phases.items():
        for old, new in RENAMED.items():
            if old in phase:
                phase[new] = phase.pop(old)
        gone = {"sweeps": 1, "detach_labels": False}
        if name == "smt":
            gone |= {"horizon": 8 if phase.get("on_policy") else phase.get("horizon")}
        if name == "dmt":
            _migrate_horizon(phase, values.get("data"), lost)
        for field, default in gone.items():
            if field in phase and (value := phase.pop(field)) != default and name in used:
                lost.append(f"{name}.{field} {value}")
    if not optimizer:
        del values["optimizer"]
    return values, lost


def _migrate_data(values: dict[str, Any]) -> None:
    """Drop settings that this kind of data does not read, if they hold their defaults."""
    data = values.get("data")
    if not isinstance(data, dict) or data.get("name", "stdlib") not in CLASS_OF:
        return
    fields = CLASS_OF[data.get("name", "stdlib")].__dataclass_fields__
    # Any old file may have sizes of tasks.
    sizes = () if data.get("name") in TASK_DATA else {size for sizes in TASK_SIZES.values() for size in sizes}
    values["data"] = {
        key: value
        for key, value in data.items()
        if key in fields or (key not in sizes and value != DATA_DEFAULTS.get(key))
    }


def _migrate_budgets(values: dict[str, Any], trained: dict[str, dict[str, Any]], lost: list[str]) -> None:
    """Turn the budgets of the phases into shares of one budget, if all phases have one in the same unit."""
    own = {name: phase.get("budget") for name, phase in trained.items()}
    if any(own.values()):
        budgets = {name: parse_budget(budget, f"{name}.budget") for name, budget in own.items() if budget}
        if len(budgets) == len(own) and len({b.unit for b in budgets.values()}) == 1:
            total = sum(b.amount for b in budgets.values())
            values["budget"] = f"{total:.10g}{next(iter(budgets.values())).unit}"
            for name, budget in budgets.items():
                trained[name]["share"] = budget.amount
        else:
            lost += [f"{name}.budget {budget}" for name, budget in own.items() if budget]
    for name in ("smt", "dmt", "bptt"):
        if isinstance(values.get(name), dict):
            values[name].pop("budget", None)


def _migrate_horizon(phase: dict[str, Any], data: Any, lost: list[str]) -> None:
    """Turn `horizon_end` into `horizon`, which used to be the horizon at the start of the phase."""
    start, end = phase.pop("horizon", 1), phase.pop("horizon_end", None)
    length = phase.get("seq_len") or (data.get("seq_len", 64) if isinstance(data, dict) else 64)
    if not all(isinstance(size, int) for size in (start, length, length if end is None else end)):
        phase["horizon"] = start  # the check of the field reports the mistake
        return
    full = length if end is None else min(end, length)
    if start >= full:
        phase["horizon_growth"] = 0.0
    elif start > 1 and phase.get("horizon_growth", 0.7):
        lost.append(f"dmt.horizon {start}")
    phase["horizon"] = None if full >= length else full
