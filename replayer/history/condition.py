"""A condition over the columns of a history's steps: the steps in which it holds, and its value in one step."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fdtrace.recorder.trace.column_values import MISSING
from fdtrace.replayer.formulas.expression import Expression
from fdtrace.replayer.history.history import History

NAMES = (
    "step", "num_tokens", "limit", "excess", "token_budget", "num_scheduled_tokens", "num_prefill_tokens",
    "num_decode_tokens", "num_draft_tokens", "num_accepted_tokens", "num_running", "num_running_decodes",
    "num_waiting", "num_preempted", "num_stalled", "num_free_blocks", "num_missing_blocks",
    "num_refused_tokens", "reserved_bytes", "allocated_bytes", "peak_reserved_bytes", "device_used_bytes",
    "schedule_us", "forward_us", "num_unseen_steps",
)  # fmt: skip
"""Names in a condition: columns of a step, its `limit`, and `excess`, the tokens over the limit (0: none)."""

_DERIVED = ("limit", "excess")


class Condition:
    """An expression over `NAMES`, such as `num_free_blocks < 8 and num_waiting > 0`.

    UsageError, with the place of the fault, if the text is no such expression.
    """

    def __init__(self, text: str) -> None:
        self.text = " ".join(text.split())
        self._expression = Expression(text, "this condition", NAMES)

    def steps(self, history: History) -> NDArray[np.int64]:
        """The numbers of the steps in which it holds, ascending.

        It does not hold in a step in which one of its columns is unknown. It holds in no step of a history that
        lacks one of its columns. UsageError if it cannot be computed.
        """
        columns, all_known = self._columns(history, slice(None))
        numbers = np.asarray(history.columns["step"], dtype=np.int64)
        if columns is None:
            return numbers[:0]
        at = np.flatnonzero(all_known)
        picked = {name: column if column.ndim == 0 else column[at] for name, column in columns.items()}
        holds = self._expression.column(picked, len(at)) != 0
        return np.asarray(numbers[at[holds]])

    def value(self, history: History, at: int) -> float | None:
        """Its value in the step at an index; None if it is unknown. UsageError if it cannot be computed."""
        columns, all_known = self._columns(history, slice(at, at + 1))
        if columns is None or not all_known.all():
            return None
        value = self._expression.column(columns, 1)[0]
        return float(value)

    def _columns(
        self, history: History, steps: slice
    ) -> tuple[dict[str, NDArray[Any]] | None, NDArray[np.bool_]]:
        """The columns that it names, and in which steps all of them are known. None: the history lacks one."""
        tokens = np.asarray(history.columns["num_tokens"])[steps]
        all_known = np.ones(len(tokens), dtype=bool)
        columns: dict[str, NDArray[Any]] = {}
        for name in self._expression.used:
            if name in _DERIVED:
                excess = np.maximum(tokens - history.limit, 0)
                columns[name] = np.asarray(history.limit) if name == "limit" else excess
                continue
            column = history.columns.get(name)
            if column is None:
                return None, all_known
            columns[name] = np.asarray(column)[steps]
            all_known &= columns[name] != MISSING
        return columns, all_known
