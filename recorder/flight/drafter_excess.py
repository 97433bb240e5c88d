"""By how much a drafter exceeded its buffers in each step: events `exceeded` as a column of steps, for the triggers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fdtrace.recorder.collector.engine import Decoded
from fdtrace.recorder.trace.column_values import MISSING
from fdtrace.recorder.trace.json_values import json_object

COLUMN = "drafter_excess_tokens"
"""0 in most steps. The table `step` has no such column: the view `exceeded` joins the events."""


class DrafterExcess:
    """Joins events to steps as the view `exceeded` does: by the first step of the call that the event names, or by the
    event's own step. Workers write an event before the engine reports its step.
    """

    def __init__(self) -> None:
        self._waiting: dict[int, list[tuple[int, int, int]]] = {}
        """By engine: call, step and excess tokens of the events whose step has not come yet."""

    def add_column(self, engine_id: int, decoded: Decoded) -> None:
        """Add the column to the steps of an engine that were just decoded. An event that comes after its step counts
        for the next step.
        """
        waiting = self._waiting.pop(engine_id, []) + [
            found for row in decoded.events if (found := _excess(row))
        ]
        for columns in decoded.steps:
            columns[COLUMN] = np.zeros(len(columns["step"]), np.int64)
        if not waiting:
            return
        first_steps = _first_steps(decoded)
        newest = max(first_steps, default=MISSING)
        for call, step, excess in waiting:
            is_known = (
                call in first_steps or call < newest
            )  # an old call that the recording does not have: MISSING too
            if not (is_known and _set(decoded, first_steps.get(call, step), excess)):
                self._waiting.setdefault(engine_id, []).append((call, step, excess))

    def state(self) -> dict[str, Any]:
        """What a successor needs to go on, as JSON."""
        return {str(engine): found for engine, found in self._waiting.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved `state`."""
        self._waiting = {
            int(engine): [(int(call), int(step), int(excess)) for call, step, excess in found]
            for engine, found in state.items()
        }


def _excess(row: tuple[Any, ...]) -> tuple[int, int, int] | None:
    """Call, step and excess of a row of `event`; None if it is about something else."""
    _, step, _, kind, _, reason, text, _ = row
    if kind != "exceeded" or reason != "drafter":
        return None
    detail = json_object(text) or {}
    limit, *sizes = (detail.get(name) for name in ("limit_tokens", "num_tokens", "num_padded_tokens"))
    known = [size for size in sizes if type(size) is int]
    if type(limit) is not int or not known:
        return None
    call = detail.get("call")
    return call if type(call) is int else MISSING, int(step or 0), max(known) - limit


def _first_steps(decoded: Decoded) -> dict[int, int]:
    """The first step of each call that has one."""
    found: dict[int, int] = {}
    for columns in decoded.calls:
        has_step = columns["first_step"] != MISSING
        found.update(
            zip(columns["call"][has_step].tolist(), columns["first_step"][has_step].tolist(), strict=True)
        )
    return found


def _set(decoded: Decoded, step: int, excess: int) -> bool:
    """Set the column at a step, or at the next one that is there. False if there is none yet."""
    for columns in decoded.steps:
        at = int(np.searchsorted(columns["step"], step))
        if at < len(columns["step"]):
            if not columns[COLUMN][at]:  # of several events of a step, the first counts
                columns[COLUMN][at] = excess
            return True
    return False
