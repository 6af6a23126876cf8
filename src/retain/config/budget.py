"""Budgets: amounts of training."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from retain.errors import UserError

LARGEST = 1e15
"""The largest amount of any unit. Floats hold whole numbers up to it exactly."""


@dataclass(frozen=True)
class Budget:
    """An amount of training: seconds of wall-clock, optimizer steps, tokens read or sequential steps.

    Sequential steps are the longest chain of dependent cell or layer applications (docs/compare.md).
    """

    amount: float
    unit: Literal["s", "steps", "tokens", "sequential"]

    def __str__(self) -> str:
        return f"{self.amount:.10g}{self.unit}" if self.unit == "s" else f"{round(self.amount)}{self.unit}"

    def share(self, fraction: float) -> Budget:
        """Return this fraction of the budget. Steps and tokens are rounded, and are at least 1."""
        amount = self.amount * fraction
        return Budget(amount if self.unit == "s" else max(1, round(amount)), self.unit)

    def split(self, weights: Sequence[float]) -> list[Budget]:
        """Split the budget in proportion to `weights`. The parts add up to this budget.

        Steps and tokens are whole numbers, rounded by the largest remainder; the first part wins a tie. Each part has
        at least 1. If the budget is smaller than the number of parts, the last parts have 0.
        """
        shares = [self.amount * weight / sum(weights) for weight in weights]
        if self.unit == "s" or not shares:
            return [Budget(share, "s") for share in shares]
        total, count = round(self.amount), len(shares)
        if total <= count:
            return [Budget(int(i < total), self.unit) for i in range(count)]
        parts = [max(1, math.floor(share)) for share in shares]
        for _ in range(total - sum(parts)):
            parts[max(range(count), key=lambda i: shares[i] - parts[i])] += 1
        for _ in range(sum(parts) - total):  # the minimum of 1 took more than there is; larger parts give it back
            parts[max(range(count), key=lambda i: (parts[i] > 1, parts[i] - shares[i], i))] -= 1
        return [Budget(part, self.unit) for part in parts]


def parse_budget(text: str, name: str = "budget") -> Budget:
    """Parse '240s', '5m', '5000steps', '20Mtokens', '500ksequential'. Raises UserError that names `name`."""
    found = re.fullmatch(r"([-+]?[\d_.]+(?:e\d+)?)([kKMG]?)(s|m|h|steps|tokens|sequential)", text.strip())
    try:
        amount = float(found[1]) if found else math.nan
    except ValueError:
        amount = math.nan
    if found is None or not math.isfinite(amount) or (found[2] and found[3] in "smh"):
        raise UserError(
            f"{name}: {text!r} is not an amount with a unit; write e.g. 240s, 5000steps, 20Mtokens or 500ksequential"
        )
    amount *= {"": 1, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9}[found[2]] * {"m": 60, "h": 3600}.get(found[3], 1)
    unit = "s" if found[3] in "smh" else found[3]
    if amount > LARGEST:
        raise UserError(f"{name}: {text!r} is more than any run lasts; give less, e.g. 240s")
    if amount <= 0 or (unit != "s" and amount < 1):
        raise UserError(f"{name}: {text!r} trains nothing; give a positive amount, e.g. 240s")
    return Budget(amount, unit)  # type: ignore[arg-type]
