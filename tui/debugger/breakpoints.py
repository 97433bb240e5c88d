"""Breakpoints: where to stop. Nothing here needs a terminal."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal
from weakref import WeakKeyDictionary

import numpy as np

from fdtrace.recorder.trace.column_values import MISSING, Ints
from fdtrace.recorder.trace.recording import Recording
from fdtrace.replayer.history.condition import Condition
from fdtrace.tui.panes.series import Series

Kind = Literal["step", "event", "condition"]

EVENTS = (
    "exceeded", "preempted", "stalled", "not_admitted", "hang", "arrived", "finished", "aborted", "extended",
    "skipped", "rescheduled", "error", "lost", "attached", "detached",
)  # fmt: skip
"""Kinds of events to break on. A replay has the first five; a recording has all but `hang`."""


COLUMN_EVENTS = ("exceeded", "hang", "not_admitted", "arrived")
"""Kinds that are read from the columns of steps and requests, for a recording too."""


@dataclass(eq=False)
class Breakpoint:
    """Where to stop: at a step, at steps with an event of a kind, or where a condition holds."""

    text: str
    kind: Kind
    enabled: bool = True
    recorded: Ints | None = None
    """Steps of the recording with this event, as the trace has them; None: read them from columns."""
    _condition: Condition | None = None
    _hits: WeakKeyDictionary[Series, tuple[int, Ints]] = field(default_factory=WeakKeyDictionary)

    @classmethod
    def parse(cls, text: str) -> Breakpoint:
        """A step's number, a kind of event, or a condition. UsageError says what is wrong with the text, and where."""
        text = " ".join(text.split())
        if text.isascii() and text.isdigit():
            return cls(text, "step")
        if text in EVENTS:
            return cls(text, "event")
        return cls(text, "condition", _condition=Condition(text))

    def hits(self, series: Series, recording: Recording) -> Ints:
        """The steps of a history at which it stops, ascending. UsageError if they cannot be computed."""
        cached = self._hits.get(series)
        if cached is not None and cached[0] == len(series):
            return cached[1]
        steps = np.unique(self._compute_hits(series, recording))
        self._hits[series] = (len(series), steps)
        return steps

    def _compute_hits(self, series: Series, recording: Recording) -> Ints:
        if self.kind == "step":
            return np.array([int(self.text)], np.int64)
        if self._condition is not None:
            return self._condition.steps(series.history)
        if self.recorded is not None and series.how == "recorded":
            return self.recorded
        return _event_steps(self.text, series, recording)

    def forget(self) -> None:
        """Forget the computed steps, so that they are computed again."""
        self._hits.clear()


def _event_steps(kind: str, series: Series, recording: Recording) -> Ints:
    if kind == "exceeded":
        return series.exceeded_steps
    if kind == "hang":
        hang = series.history.outcome.hang
        return np.array([] if hang is None else [hang.step], np.int64)
    column = series.history.columns.get("not_admitted" if kind == "not_admitted" else f"num_{kind}")
    if column is not None:
        happened = column != "" if column.dtype == object else np.asarray(column) > 0
        return np.asarray(series.step[happened])
    if kind == "arrived":
        steps = recording.requests.get("arrived_step")
    elif kind in ("finished", "aborted") and series.how != "rescheduled":
        endings = recording.details.endings
        steps = endings.finished_step if kind == "finished" else endings.aborted_step
    else:
        steps = None
    if steps is None:
        return np.zeros(0, np.int64)
    return np.asarray(steps[steps != MISSING], dtype=np.int64)


class Breakpoints:
    """The list of breakpoints."""

    def __init__(self) -> None:
        self.all: list[Breakpoint] = []

    def add(self, text: str) -> Breakpoint:
        """Add a breakpoint, or enable the one with the same text. UsageError if the text is no breakpoint."""
        new = Breakpoint.parse(text)
        for point in self.all:
            if point.text == new.text:
                point.enabled = True
                return point
        self.all.append(new)
        return new

    def toggle_step(self, step: int) -> bool:
        """Set a breakpoint on a step, or remove it. Returns whether the step has one afterwards."""
        for point in self.all:
            if point.kind == "step" and int(point.text) == step:
                self.all.remove(point)
                return False
        self.all.append(Breakpoint(str(step), "step"))
        return True

    def next(
        self, series: Series, recording: Recording, step: int, direction: int
    ) -> tuple[int, Breakpoint] | None:
        """The nearest stop after a step, or before it (`direction` -1), with its breakpoint; None: there is none."""
        nearest: tuple[int, Breakpoint] | None = None
        for point in self.all:
            if not point.enabled:
                continue
            hits = point.hits(series, recording)
            at = int(np.searchsorted(hits, step, side="right" if direction > 0 else "left"))
            at = at if direction > 0 else at - 1
            if not 0 <= at < len(hits):
                continue
            stop = int(hits[at])
            if nearest is None or (stop - nearest[0]) * direction < 0:
                nearest = stop, point
        return nearest

    def at(self, series: Series, recording: Recording, step: int) -> list[Breakpoint]:
        """The enabled breakpoints that stop at a step."""
        points = []
        for point in self.all:
            hits = point.hits(series, recording) if point.enabled else ()
            at = int(np.searchsorted(hits, step)) if len(hits) else 0
            if at < len(hits) and hits[at] == step:
                points.append(point)
        return points
