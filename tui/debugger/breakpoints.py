"""Breakpoints: where to stop. No terminal."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal
from weakref import WeakKeyDictionary

import numpy as np
from fdtrace.recorder.trace.column_values import MISSING
from numpy.typing import NDArray

from fdtrace.recorder.trace.recording import Recording
from fdtrace.replayer.history.condition import Condition
from fdtrace.tui.panes.series import Series

Ints = NDArray[np.int64]
Kind = Literal["step", "event", "condition"]

EVENTS = (
    "exceeded", "preempted", "stalled", "not_admitted", "hang", "arrived", "finished", "aborted", "extended",
    "skipped", "rescheduled", "error", "lost", "attached", "detached",
)  # fmt: skip
"""Kinds of events to break on. A replay tells the first five; a recording all but `hang`."""


COLUMN_EVENTS = ("exceeded", "hang", "not_admitted", "arrived")
"""Those that the columns of steps and requests tell, of a recording too."""


@dataclass(eq=False)
class Breakpoint:
    """Where to stop: at a step, at steps with an event of a kind, or where a condition holds."""

    text: str
    kind: Kind
    enabled: bool = True
    recorded: Ints | None = None
    """Steps of the recording with this event; None: they are found from columns."""
    _condition: Condition | None = None
    _hits: WeakKeyDictionary[Series, tuple[int, Ints]] = field(default_factory=WeakKeyDictionary)

    @classmethod
    def parse(cls, text: str) -> Breakpoint:
        """A step's number, an event's kind, or a condition. UsageError says what is wrong with it, and where."""
        text = " ".join(text.split())
        if text.isascii() and text.isdigit():
            return cls(text, "step")
        if text in EVENTS:
            return cls(text, "event")
        return cls(text, "condition", _condition=Condition(text))

    def hits(self, series: Series, recording: Recording) -> Ints:
        """The steps of a history that it stops at, ascending. UsageError where it cannot be computed."""
        known = self._hits.get(series)
        if known is not None and known[0] == len(series):
            return known[1]
        found = np.unique(self._find(series, recording))
        self._hits[series] = (len(series), found)
        return found

    def _find(self, series: Series, recording: Recording) -> Ints:
        if self.kind == "step":
            return np.array([int(self.text)], np.int64)
        if self._condition is not None:
            return self._condition.steps(series.history)
        if self.recorded is not None and series.how == "recorded":
            return self.recorded
        return _event_steps(self.text, series, recording)

    def forget(self) -> None:
        """What was found is found anew."""
        self._hits.clear()


def _event_steps(kind: str, series: Series, recording: Recording) -> Ints:
    if kind == "exceeded":
        return np.asarray(series.step[series.over])
    if kind == "hang":
        hang = series.history.outcome.hang
        return np.array([] if hang is None else [hang.step], np.int64)
    column = series.history.columns.get("not_admitted" if kind == "not_admitted" else f"num_{kind}")
    if column is not None:
        there = column != "" if column.dtype == object else np.asarray(column) > 0
        return np.asarray(series.step[there])
    if kind == "arrived":
        at = recording.requests.get("arrived_step")
    elif kind in ("finished", "aborted") and series.how != "rescheduled":
        endings = recording.details.endings
        at = endings.finished_step if kind == "finished" else endings.aborted_step
    else:
        at = None
    if at is None:
        return np.zeros(0, np.int64)
    return np.asarray(at[at != MISSING], dtype=np.int64)


class Breakpoints:
    """The list of breakpoints."""

    def __init__(self) -> None:
        self.all: list[Breakpoint] = []

    def add(self, text: str) -> Breakpoint:
        """Add one; where it is there already, enable that. UsageError where it is none."""
        new = Breakpoint.parse(text)
        for known in self.all:
            if known.text == new.text:
                known.enabled = True
                return known
        self.all.append(new)
        return new

    def toggle_step(self, step: int) -> bool:
        """Set a breakpoint on a step, or remove it; whether there is one then."""
        for known in self.all:
            if known.kind == "step" and int(known.text) == step:
                self.all.remove(known)
                return False
        self.all.append(Breakpoint(str(step), "step"))
        return True

    def next(
        self, series: Series, recording: Recording, step: int, direction: int
    ) -> tuple[int, Breakpoint] | None:
        """The nearest stop after a step (or before it), with its breakpoint; None: there is none."""
        best: tuple[int, Breakpoint] | None = None
        for point in self.all:
            if not point.enabled:
                continue
            hits = point.hits(series, recording)
            at = int(np.searchsorted(hits, step, side="right" if direction > 0 else "left"))
            at = at if direction > 0 else at - 1
            if not 0 <= at < len(hits):
                continue
            found = int(hits[at])
            if best is None or (found - best[0]) * direction < 0:
                best = found, point
        return best

    def at(self, series: Series, recording: Recording, step: int) -> list[Breakpoint]:
        """The enabled breakpoints that a step is a stop of."""
        out = []
        for point in self.all:
            hits = point.hits(series, recording) if point.enabled else ()
            at = int(np.searchsorted(hits, step)) if len(hits) else 0
            if at < len(hits) and hits[at] == step:
                out.append(point)
        return out
