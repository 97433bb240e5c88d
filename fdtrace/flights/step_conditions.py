"""Conditions of a flight recorder over the columns of a step: `exceeded`, `forward_us > 9e5`, `num_waiting > 9 for 5s`.

A condition fires in the first step in which it holds, and again after a step in which it did not. With `for`, it fires
in the first step in which it has held in all steps of that time.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fdtrace.durations import duration_of
from fdtrace.recorder.errors import FdtraceError, UsageError
from fdtrace.recorder.flight import drafter_excess
from fdtrace.recorder.flight.firing import FiredTrigger, Watcher
from fdtrace.recorder.trace.column_values import MISSING, ColumnArrays
from fdtrace.replayer.formulas.expression import Expression
from fdtrace.replayer.history import condition

NOT_RECORDED = ("num_refused_tokens", "num_unseen_steps")
"""Names of a replay's conditions that follow from more than one step."""

NAMES = tuple(name for name in condition.NAMES if name not in NOT_RECORDED)

ALWAYS = ("error", "out_of_memory", "hang", "death")
"""Triggers that need no `--on`."""

_FOR = re.compile(r"(?P<condition>.*\S)\s+for\s+(?P<time>[0-9.]+\s*[a-z]+)", re.DOTALL)

Holds = tuple[NDArray[np.bool_], NDArray[np.float64]]
"""In which steps a condition holds; and its value in each, NaN where there is none."""


def watcher_of(text: str) -> Watcher | None:
    """What watches for a condition; None for a trigger that is always on.

    Raises:
        UsageError: it is no condition.
    """
    text = " ".join(text.split())
    if text in ALWAYS:
        return None
    match = _FOR.fullmatch(text)
    plain, lasting = (
        (match["condition"], duration_of(match["time"], "--on 'CONDITION for")) if match else (text, 0)
    )
    return RunWatcher(text, _exceeded if plain == "exceeded" else _Compared(plain).holds, lasting)


class RunWatcher(Watcher):
    """Watches for runs of steps in which a condition holds. `lasting`: how long a run must be, ns."""

    def __init__(
        self, trigger: str, holds: Callable[[Mapping[str, Any], ColumnArrays], Holds], lasting: int
    ) -> None:
        self.trigger, self.holds, self.lasting = trigger, holds, lasting
        self._runs: dict[int, tuple[int, bool]] = {}
        """By engine: when the run began that was going on after the last step, and whether it has fired."""

    def see(self, engine_id: int, engine: Mapping[str, Any], columns: ColumnArrays) -> list[FiredTrigger]:
        """As `Watcher.see`."""
        holds, values = self.holds(engine, columns)
        ts, steps, count = columns["ts"], columns["step"], len(holds)
        edges = np.flatnonzero(np.diff(np.concatenate(([False], holds, [False])).astype(np.int8)))
        carried, firings = self._runs.pop(engine_id, None), []
        for first, end in edges.reshape(-1, 2).tolist():
            since, fired = carried if carried is not None and first == 0 else (int(ts[first]), False)
            if not fired:
                at = first + int(np.searchsorted(ts[first:end], since + self.lasting))
                if at < end:
                    fired = True
                    value = None if np.isnan(values[at]) else float(values[at])
                    firings.append(FiredTrigger(self.trigger, int(ts[at]), engine_id, int(steps[at]), value))
            if end == count:
                self._runs[engine_id] = since, fired
        return firings

    def state(self) -> Any:
        """As `Watcher.state`."""
        return {str(engine): run for engine, run in self._runs.items()}

    def restore(self, state: Any) -> None:
        """As `Watcher.restore`."""
        self._runs = {int(engine): (int(since), bool(fired)) for engine, (since, fired) in state.items()}


PADDED = ("vllm", "transformers")
"""Engines whose `num_predicted_tokens` are the tokens of a padded batch, which all run."""


def _exceeded(engine: Mapping[str, Any], columns: ColumnArrays) -> Holds:
    """By the rules of the view `exceeded` (recorder/schema_views.py). The value is the excess over the limit that the
    view names first.
    """
    tokens, prefills = columns["num_tokens"], columns["num_prefill_tokens"]
    limits = [engine.get("max_num_batched_tokens"), engine.get("max_profiled_tokens")]
    profiled, dispatch = limits[1], engine.get("num_max_dispatch_tokens_per_rank")
    scheduled = max((limit for limit in limits if limit is not None), default=None)
    excess = np.maximum(columns.get(drafter_excess.COLUMN, np.zeros(len(tokens), np.int64)), 0)
    padded = columns.get("num_predicted_tokens")
    if padded is not None and scheduled is not None and engine.get("name") in PADDED:
        excess = np.where(padded > scheduled, padded - scheduled, excess)
    read, readable = columns.get("num_cache_read_tokens"), columns.get("cache_read_budget")
    if read is not None and readable is not None:
        over = (readable != MISSING) & (read > readable)
        excess = np.where(over, read - readable, excess)
    for limit, applies in ((dispatch, prefills == 0), (profiled, True), (scheduled, True)):
        if limit is not None:
            excess = np.where(applies & (tokens > limit), tokens - limit, excess)
    return excess > 0, excess.astype(np.float64)


class _Compared:
    """An expression over `NAMES`. Of a comparison, the value is its left side."""

    def __init__(self, text: str) -> None:
        self.condition = Expression(text, "this trigger", NAMES)
        root = ast.parse(text, mode="eval").body
        left = ast.unparse(root.left) if isinstance(root, ast.Compare) else text
        self.value = Expression(left, "this trigger", NAMES)

    def holds(self, engine: Mapping[str, Any], columns: ColumnArrays) -> Holds:
        """It does not hold where a column is unknown, nor where it cannot be computed."""
        count = len(columns["step"])
        known, values = np.ones(count, bool), np.full(count, np.nan)
        used = {name: _column(name, engine, columns) for name in self.condition.used}
        arrays = {name: column for name, column in used.items() if column is not None}
        if len(arrays) < len(used):
            return ~known, values
        for column in arrays.values():
            known &= column != MISSING
        at = np.flatnonzero(known)
        holds = np.zeros(count, bool)
        holds[at] = _computed(self.condition, arrays, at) != 0
        at = np.flatnonzero(holds)
        values[at] = _computed(self.value, arrays, at)
        return holds, values


def _column(name: str, engine: Mapping[str, Any], columns: ColumnArrays) -> NDArray[Any] | None:
    limit = engine.get("max_num_batched_tokens")
    if name in ("limit", "excess"):
        if limit is None:
            return None
        tokens = columns["num_tokens"]
        return np.full(len(tokens), limit) if name == "limit" else np.maximum(tokens - limit, 0)
    return columns.get(name)


def _computed(expression: Expression, columns: ColumnArrays, at: NDArray[np.int64]) -> NDArray[Any]:
    """The values in the steps at these indices; 0 where it divides by 0, or is too large."""
    try:
        return expression.column({name: column[at] for name, column in columns.items()}, len(at))
    except FdtraceError:
        if len(at) <= 1:
            return np.zeros(len(at))
    return np.concatenate([_computed(expression, columns, at[i : i + 1]) for i in range(len(at))])


def check_triggers(texts: list[str]) -> list[Watcher]:
    """What watches for these conditions. UsageError for the first that is none."""
    watchers = []
    for text in texts:
        try:
            watcher = watcher_of(text)
        except UsageError as error:
            hint = f"--on exceeded, or a condition over {', '.join(NAMES[:8])}, …: docs/flights.md"
            raise UsageError(error.what, why=error.why, hint=error.hint or hint) from None
        if watcher is not None:
            watchers.append(watcher)
    return watchers
