"""An optimizer's state under parameter names, as tensors and JSON, and back: bitwise, and nothing pickled."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from retain.errors import CheckpointError, UserError

# Options of an optimizer that say how it computes on this machine: the resuming one keeps its own.
HOW_NOT_WHAT = ("params", "foreach", "fused", "capturable", "differentiable")


def optimizer_tensors(
    optimizer: Optimizer, named_parameters: Iterable[tuple[str, Tensor]]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The optimizer's state under parameter names: its tensors as "NAME/ENTRY", and JSON for all the rest.

    Takes `model.named_parameters()`. Raises UserError if the optimizer has a parameter that is not among them.
    """
    names = {parameter: name for name, parameter in named_parameters}
    groups = _grouping(optimizer, names)
    tensors: dict[str, Tensor] = {}
    values: dict[str, dict[str, Any]] = {}
    for parameter, entries in optimizer.state.items():
        for entry, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{names[parameter]}/{entry}"] = value
            else:
                values.setdefault(names[parameter], {})[entry] = value
    options = [
        {key: value for key, value in group.items() if key not in HOW_NOT_WHAT} for group in optimizer.param_groups
    ]
    return tensors, {"groups": groups, "options": options, "values": values}


def load_optimizer(
    optimizer: Optimizer,
    named_parameters: Iterable[tuple[str, Tensor]],
    tensors: Mapping[str, Tensor],
    saved: Mapping[str, Any],
) -> None:
    """Put back what `optimizer_tensors` gave, groups' options included, so that the next step is bitwise the same.

    Raises CheckpointError, before anything is changed, if names, shapes or groups are not those of this optimizer.
    """
    parameters = dict(named_parameters)
    grouping = _grouping(optimizer, {parameter: name for name, parameter in parameters.items()})
    if grouping != saved["groups"]:
        raise CheckpointError("optimizer: its parameters differ from the checkpoint's; build the same model to resume")
    states: dict[str, dict[str, Any]] = {name: dict(values) for name, values in saved["values"].items()}
    group_of = {name: group for group, inside in zip(optimizer.param_groups, grouping, strict=True) for name in inside}
    for key, value in tensors.items():
        name, _, entry = key.rpartition("/")
        if name not in group_of:
            raise CheckpointError(f"optimizer: {key} belongs to no parameter of this model")
        # As torch places it: a plain AdamW counts its steps on the CPU, whatever the parameter's device.
        on_cpu = entry == "step" and not (group_of[name].get("capturable") or group_of[name].get("fused"))
        states.setdefault(name, {})[entry] = value.to("cpu" if on_cpu else parameters[name].device, copy=True)
    optimizer.state.clear()
    for name, state in states.items():
        optimizer.state[parameters[name]] = state
    for group, options in zip(optimizer.param_groups, saved["options"], strict=True):
        for key, value in options.items():
            if isinstance(group.get(key), Tensor):
                group[key].fill_(value)
            else:
                group[key] = tuple(value) if isinstance(value, list) else value


def _grouping(optimizer: Optimizer, names: Mapping[Tensor, str]) -> list[dict[str, list[int]]]:
    """Name and shape of the parameters of each group, in order."""
    if any(parameter not in names for group in optimizer.param_groups for parameter in group["params"]):
        raise UserError("named_parameters: lacks some of the optimizer's parameters; pass model.named_parameters()")
    return [{names[p]: list(p.shape) for p in group["params"]} for group in optimizer.param_groups]
