"""An optimizer's state under parameter names, as tensors and JSON, and back: bit for bit, and without pickle."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from retain.errors import CheckpointError, UserError

HOW_NOT_WHAT = ("params", "foreach", "fused", "capturable", "differentiable")
"""Options of how an optimizer computes on this machine. A resumed optimizer keeps its own."""


def dump_optimizer(
    optimizer: Optimizer, named_parameters: Iterable[tuple[str, Tensor]]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Split an optimizer's state by parameter names: its tensors as "NAME/ENTRY", and JSON for the rest.

    `named_parameters` is `model.named_parameters()`. Raises UserError if the optimizer has a parameter that is not
    among them.
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
    """Restore the result of `dump_optimizer`, with options of groups, so that the next step is bit for bit the same.

    Raises CheckpointError, and changes nothing, if names, shapes or groups are not those of this optimizer.
    """
    if _grouping(optimizer, {parameter: name for name, parameter in named_parameters}) != saved["groups"]:
        raise CheckpointError("optimizer: its parameters differ from the checkpoint's; build the same model to resume")
    # An optimizer's state dict has a number for each parameter, counted through all groups.
    numbers = {name: number for number, name in enumerate(chain.from_iterable(saved["groups"]))}
    state: dict[int, dict[str, Any]] = {numbers[name]: dict(values) for name, values in saved["values"].items()}
    for key, value in tensors.items():
        name, _, entry = key.rpartition("/")
        if name not in numbers:
            raise CheckpointError(f"optimizer: {key} belongs to no parameter of this model")
        # A plain AdamW counts its steps on the CPU, whatever the parameter's device; load_state_dict places the rest.
        state.setdefault(numbers[name], {})[entry] = value.to("cpu" if entry == "step" else value.device, copy=True)
    groups = [
        group | {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
        for group, options in zip(optimizer.state_dict()["param_groups"], saved["options"], strict=True)
    ]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _grouping(optimizer: Optimizer, names: Mapping[Tensor, str]) -> list[dict[str, list[int]]]:
    """Return name and shape of the parameters of each group, in order."""
    if any(parameter not in names for group in optimizer.param_groups for parameter in group["params"]):
        raise UserError("named_parameters: lacks some of the optimizer's parameters; pass model.named_parameters()")
    return [{names[p]: list(p.shape) for p in group["params"]} for group in optimizer.param_groups]
