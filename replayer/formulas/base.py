"""What a budget formula is: the budget of a scheduling call, and what each running decode is charged in its
loop.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fdtrace.recorder.errors import UsageError
from fdtrace.replayer.formulas.variables import VARIABLES, Variables

FormulaColumns = Mapping[str, "NDArray[np.int64] | int"]
"""Variables by name: a scalar, or one entry a step."""

MAX_MAGNITUDE = 2**53
"""Largest value of a formula and its parts: beyond it, arithmetic of floats is not exact."""


class Formula(ABC):
    """A budget formula; a user's own class need not inherit from it, see `formula_from_class`."""

    name: str
    description: str = ""
    source: str = ""
    """The change that it comes from."""
    policy: str | None = None
    """Name of the policy that comes with it where none is asked for; None: it is a budget alone."""
    text: str = ""
    """It as an expression, `BUDGET` or `BUDGET; charge CHARGE`; empty where it is none (a class)."""

    @abstractmethod
    def budget(self, v: Variables) -> int:
        """Tokens that a scheduling call may hand out, at its start; 0 or less: none."""

    def charge(self, v: Variables) -> int:
        """Tokens that each running decode takes from the budget as the call's loop comes to it."""
        return 0

    def budgets(self, columns: FormulaColumns, length: int) -> NDArray[np.int64]:
        """`budget` of every step: int64 of `length` entries."""
        return _by_distinct_state(self.budget, columns, length)

    def charges(self, columns: FormulaColumns, length: int) -> NDArray[np.int64]:
        """`charge` of every step: int64 of `length` entries."""
        return _by_distinct_state(self.charge, columns, length)


def whole(value: Any, what: str) -> int:
    """`value` rounded down to a whole number; UsageError where it is none or too large."""
    if isinstance(value, (int, float, np.integer, np.floating)) and abs(float(value)) <= MAX_MAGNITUDE:
        return math.floor(value)
    raise UsageError(
        f"{what} is {value!r:.60}", why=f"a whole number of tokens of at most {MAX_MAGNITUDE} is needed"
    )


def _by_distinct_state(
    function: Callable[[Variables], int], columns: FormulaColumns, length: int
) -> NDArray[np.int64]:
    """`function` of every step, called once for each state that differs."""
    names: tuple[str, ...] = tuple(VARIABLES)
    values_of = {name: np.asarray(columns[name]) for name in names}
    fixed = {name: int(values) for name, values in values_of.items() if values.ndim == 0}
    varying = [name for name in names if name not in fixed]
    v = Variables(**{name: fixed.get(name, 0) for name in names})
    if not varying:
        return np.full(length, function(v), dtype=np.int64)
    states, inverse = _distinct([np.broadcast_to(values_of[name], length) for name in varying])
    values = np.empty(len(states), dtype=np.int64)
    for i, state in enumerate(states.tolist()):
        for name, value in zip(varying, state, strict=True):
            setattr(v, name, value)
        values[i] = function(v)
    return values[inverse]


def _distinct(columns: list[NDArray[np.int64]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The distinct rows of some columns, and for each row its number among them."""
    numbers = np.zeros(len(columns[0]), dtype=np.int64)
    for column in columns:  # rows as single numbers, renumbered after each column so that none gets large
        values, index = np.unique(column, return_inverse=True)
        _, numbers = np.unique(numbers * len(values) + index.reshape(-1), return_inverse=True)
        numbers = numbers.reshape(-1)
    _, first = np.unique(numbers, return_index=True)
    return np.stack([column[first] for column in columns], axis=1), numbers
