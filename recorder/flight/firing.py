"""Triggers of a flight recorder: what fired, when, and what watches for it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import Any, Protocol

from fdtrace.recorder.trace.column_values import ColumnArrays

OUT_OF_MEMORY = re.compile(r"out.?of.?memory|resource.?exhausted", re.IGNORECASE)
"""Names of errors about memory: `OutOfMemoryError` of PyTorch, Paddle's `ResourceExhaustedError`."""


@dataclass(frozen=True)
class FiredTrigger:
    """A trigger that fired.

    Args:
        trigger: its name or its condition.
        ts: when, ns, UTC: the time of the step or the event.
        engine_id: the engine in which it fired; None: it concerns none.
        step: the step in which it fired.
        value: the value of the condition's left side there, or the excess tokens.
        why: more about it, such as the reason of an error.
        limited: whether it keeps nothing if it comes too soon after another.
    """

    trigger: str
    ts: int
    engine_id: int | None = None
    step: int | None = None
    value: float | None = None
    why: str = ""
    limited: bool = True

    def as_json(self) -> dict[str, Any]:
        """The fields."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> FiredTrigger:
        """The firing of which `as_json` gave the fields."""
        return cls(**fields)

    @property
    def sentence(self) -> str:
        """What fired, where and when."""
        value = "" if self.value is None else f", value {self.value:g}"
        where = "" if self.step is None else f" at step {self.step} of engine {self.engine_id}"
        why = f" ({self.why})" if self.why else ""
        return f"`{self.trigger}`{where}{value}{why}, {clock(self.ts)}"


class Watcher(Protocol):
    """Watches the steps of all engines for one condition. Its state must be JSON: it outlives a killed collector."""

    trigger: str

    def see(self, engine_id: int, engine: Mapping[str, Any], columns: ColumnArrays) -> list[FiredTrigger]:
        """Take consecutive steps of an engine, as columns of `step` with -1 for NULL; what fired in them."""

    def state(self) -> Any:
        """What a successor needs to go on."""

    def restore(self, state: Any) -> None:
        """Go on from a saved `state`."""


def errors_in(events: list[tuple[Any, ...]]) -> list[FiredTrigger]:
    """A firing for each event about an error of an engine, of rows of `event`. Errors of one request are left out."""
    firings = []
    for engine_id, step, ts, kind, request, reason, *_ in events:
        if kind == "error" and request is None:
            is_memory = OUT_OF_MEMORY.search(reason or "") is not None
            trigger = "out_of_memory" if is_memory else "error"
            firings.append(FiredTrigger(trigger, ts or 0, engine_id, step, why=reason or ""))
    return firings


def clock(ns: int) -> str:
    """A time in UTC, to the millisecond."""
    moment = datetime.fromtimestamp(ns // 1_000_000_000, timezone.utc)
    return f"{moment:%Y-%m-%d %H:%M:%S}.{ns // 1_000_000 % 1000:03d}Z"
