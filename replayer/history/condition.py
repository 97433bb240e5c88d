"""A condition over the columns of a history's steps: which steps it holds in, and its value in one."""

from __future__ import annotations

from typing import Any

import numpy as np
from fdtrace.recorder.trace.column_values import MISSING
from numpy.typing import NDArray

from fdtrace.replayer.formulas.expression import Expression
from fdtrace.replayer.history.history import History

NAMES = (
    "step", "num_tokens", "limit", "excess", "token_budget", "num_scheduled_tokens", "num_prefill_tokens",
    "num_decode_tokens", "num_draft_tokens", "num_accepted_tokens", "num_running", "num_running_decodes",
    "num_waiting", "num_preempted", "num_stalled", "num_free_blocks", "num_missing_blocks",
    "num_refused_tokens", "reserved_bytes", "allocated_bytes", "peak_reserved_bytes", "device_used_bytes",
    "schedule_us", "forward_us",
)  # fmt: skip
"""What a condition may name: columns of a step, its `limit`, and by how much it is exceeded (0: not)."""

_DERIVED = ("limit", "excess")


class Condition:
    """An expression over `NAMES`, as `num_free_blocks < 8 and num_waiting > 0`.

    UsageError where it is none, with the place that is wrong.
    """

    def __init__(self, text: str) -> None:
        self.text = " ".join(text.split())
        self._expression = Expression(text, "this condition", NAMES)

    def steps(self, history: History) -> NDArray[np.int64]:
        """The numbers of the steps in which it holds, ascending.

        A step in which a column that it names is not known counts as one in which it does not hold; so do all
        of a history that has no such column. UsageError where it cannot be computed.
        """
        columns, known = self._columns(history, slice(None))
        numbers = np.asarray(history.columns["step"], dtype=np.int64)
        if columns is None:
            return numbers[:0]
        at = np.flatnonzero(known)
        picked = {name: column if column.ndim == 0 else column[at] for name, column in columns.items()}
        holds = self._expression.column(picked, len(at)) != 0
        return np.asarray(numbers[at[holds]])

    def value(self, history: History, at: int) -> float | None:
        """Its value in the step at an index; None where that is not known. UsageError as above."""
        columns, known = self._columns(history, slice(at, at + 1))
        if columns is None or not known.all():
            return None
        value = self._expression.column(columns, 1)[0]
        return float(value)

    def _columns(
        self, history: History, part: slice
    ) -> tuple[dict[str, NDArray[Any]] | None, NDArray[np.bool_]]:
        """The columns that it names, and where all of them are known; None: the history lacks one."""
        tokens = np.asarray(history.columns["num_tokens"])[part]
        known = np.ones(len(tokens), dtype=bool)
        found: dict[str, NDArray[Any]] = {}
        for name in self._expression.used:
            if name in _DERIVED:
                excess = np.maximum(tokens - history.limit, 0)
                found[name] = np.asarray(history.limit) if name == "limit" else excess
                continue
            column = history.columns.get(name)
            if column is None:
                return None, known
            found[name] = np.asarray(column)[part]
            known &= found[name] != MISSING
        return found, known
