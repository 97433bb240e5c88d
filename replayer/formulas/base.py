"""The interface of a budget formula: the budget of a scheduling call, and the charge of each running decode in its
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
from fdtrace.recorder.printable import printable
from fdtrace.replayer.formulas.call_rules import RULES
from fdtrace.replayer.formulas.variables import VARIABLES, RequestVariables, Variables

FormulaColumns = Mapping[str, "NDArray[np.int64] | int"]
"""Variables by name: a scalar, or an array with one entry for each step."""

MAX_MAGNITUDE = 2**53
"""Largest value of a formula and of its subexpressions. Beyond it, arithmetic of floats is not exact."""


class Formula(ABC):
    """A budget formula. A user's own class does not have to inherit from it: see `formula_from_class`."""

    name: str
    description: str = ""
    source: str = ""
    """The change that it comes from."""
    policy: str | None = None
    """Name of the policy that is used with it unless the user asks for another; None: it has none."""
    text: str = ""
    """The formula as an expression, `BUDGET` or `BUDGET; RULE EXPRESSION; …`; empty for a class."""

    @property
    def rules(self) -> frozenset[str]:
        """Those of `RULES` that it has: the methods that its class defines."""
        return frozenset(name for name in RULES if getattr(type(self), name) is not getattr(Formula, name))

    def __repr__(self) -> str:
        """Its kind, its name, and its expression where it has one."""
        expression = f": {printable(self.text)}" if self.text else ""
        return f"<{type(self).__name__} {self.name!r}{expression}>"

    @abstractmethod
    def budget(self, v: Variables) -> int:
        """Tokens that a scheduling call may hand out, when it begins; 0 or less: none."""

    def charge(self, v: Variables) -> int:
        """Tokens that each running decode takes from the budget when the call's loop visits it."""
        return 0

    def chunk_charge(self, v: Variables, r: RequestVariables) -> int:
        """Tokens that a chunk of a prefill takes from the budget."""
        return r.num_chunk_tokens

    def chunk_cap(self, v: Variables, r: RequestVariables) -> int:
        """Most tokens of a prefill that the request gets in this call; 0 or less: it waits."""
        return MAX_MAGNITUDE

    def admit(self, v: Variables, r: RequestVariables) -> int:
        """Whether the request, which is the head of the waiting queue, may be admitted; 0: no."""
        return 1

    def input_budget(self, v: Variables) -> int:
        """Tokens and draft slots that a call of vLLM's scheduler may hand out."""
        return v.max_num_batched_tokens

    def draft_slots(self, v: Variables) -> int:
        """Tokens of the input budget that each scheduled request pays besides its own."""
        return v.num_draft_slots

    def max_requests(self, v: Variables) -> int:
        """Most requests that a call of vLLM's scheduler may schedule."""
        return v.max_num_seqs

    def budgets(self, columns: FormulaColumns, length: int) -> NDArray[np.int64]:
        """`budget` of every step: int64 of `length` entries."""
        return _by_distinct_state(self.budget, columns, length)

    def charges(self, columns: FormulaColumns, length: int) -> NDArray[np.int64]:
        """`charge` of every step: int64 of `length` entries."""
        return _by_distinct_state(self.charge, columns, length)

    def of_every_step(
        self, rule: Callable[[Variables], int], columns: FormulaColumns, length: int
    ) -> NDArray[np.int64]:
        """One of its rules about a call, of every step: int64 of `length` entries."""
        return _by_distinct_state(rule, columns, length)


def whole(value: Any, name: str) -> int:
    """`value` rounded down to a whole number. UsageError, which calls it `name`, if it is no number or too large."""
    if isinstance(value, (int, float, np.integer, np.floating)) and abs(float(value)) <= MAX_MAGNITUDE:
        return math.floor(value)
    raise UsageError(
        f"{name} is {value!r:.60}", why=f"a whole number of tokens of at most {MAX_MAGNITUDE} is needed"
    )


def _by_distinct_state(
    function: Callable[[Variables], int], columns: FormulaColumns, length: int
) -> NDArray[np.int64]:
    """`function` of every step. It is called once for each distinct state of the variables."""
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
    """The distinct rows of some columns, and for each row its index among them."""
    numbers = np.zeros(len(columns[0]), dtype=np.int64)
    for (
        column
    ) in columns:  # each row becomes one number; renumbering after each column keeps the numbers small
        values, index = np.unique(column, return_inverse=True)
        _, numbers = np.unique(numbers * len(values) + index.reshape(-1), return_inverse=True)
        numbers = numbers.reshape(-1)
    _, first = np.unique(numbers, return_index=True)
    return np.stack([column[first] for column in columns], axis=1), numbers
