"""A recording in progress: the screen shows new steps as they come, and follows them until the user steps back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from textual.timer import Timer

from fdtrace.recorder.trace.recording import Recording
from fdtrace.replayer.history.as_recorded import recorded_history
from fdtrace.replayer.replay.workload_replay import Cancelled
from fdtrace.tui.background import Deliver
from fdtrace.tui.debugger.controller import Debugger
from fdtrace.tui.inspector.controller import InspectorController
from fdtrace.tui.lag import LagTrack
from fdtrace.tui.panes.controller import Panes
from fdtrace.tui.panes.series import Series
from fdtrace.tui.screen_protocol import ReplayScreen
from fdtrace.tui.sources import NewSteps
from fdtrace.tui.status_lines import StatusLines

EVERY = 0.5
"""Seconds between two reads of the trace."""

SILENT = 10.0
"""A collector that publishes nothing for so many seconds may be gone. It publishes every 1.5 s, even without steps."""


class GrowingColumns:
    """Columns that grow. Their room doubles when it is full, so each row is copied only a few times.

    The arrays that it begins with are not changed.
    """

    def __init__(self, columns: Mapping[str, NDArray[Any]]) -> None:
        self.length = len(columns["step"])
        self._room = {name: np.asarray(column) for name, column in columns.items()}

    def append(self, more: Mapping[str, NDArray[Any]]) -> None:
        """Add rows. A column that they lack gets the missing value of its type: -1, or an empty text."""
        count = len(more["step"])
        for name, current in list(self._room.items()):
            room = current
            if self.length + count > len(current):
                room = np.empty(max(2 * len(current), self.length + count, 1024), current.dtype)
                room[: self.length] = current[: self.length]
                self._room[name] = room
            missing = "" if room.dtype == object else -1
            room[self.length : self.length + count] = more.get(name, missing)
        self.length += count

    @property
    def last(self) -> int:
        """The number of the last step; -1: there is none."""
        return int(self._room["step"][self.length - 1]) if self.length else -1

    @property
    def views(self) -> dict[str, NDArray[Any]]:
        """The columns so far, without a copy."""
        return {name: room[: self.length] for name, room in self._room.items()}


@dataclass(frozen=True)
class RecordingUpdate:
    """What a read of the trace brought.

    `grown` is the longer recording with its series; None: it has no new steps. `whole` is the complete recording; None:
    it has not ended.
    """

    tail: NewSteps
    grown: tuple[Recording, Series] | None
    whole: Recording | None


class Live:
    """Reads the trace twice a second, off the screen's thread."""

    def __init__(
        self,
        screen: ReplayScreen,
        panes: Panes,
        debugger: Debugger,
        inspector: InspectorController,
        status: StatusLines,
        lag: LagTrack,
    ) -> None:
        self.screen, self.panes, self.status, self.lag = screen, panes, status, lag
        self.debugger, self.inspector = debugger, inspector
        self._columns: GrowingColumns | None = None
        self._reads = screen.background("tail", self._take_in, self._unreadable)
        self._timer: Timer | None = None

    def begin(self) -> None:
        """Follow the recording, if it is in progress."""
        session = self.screen.session
        if session.sources.tail is None:
            self.lag.begin()
            return
        self._columns = GrowingColumns(session.recording.steps)
        session.following = True
        self._timer = self.screen.every(EVERY, self._request_read)
        self._show_state("RECORDING")
        self._go_to_end()

    def follow(self) -> None:
        """Follow the recording again."""
        if not self.status.live:
            self.screen.say("this recording is complete: there is nothing to follow")
            return
        self.screen.session.following = True
        self._go_to_end()
        self.screen.say("following; a step back stops it")

    def _show_state(self, state: str) -> bool:
        """Show the state of the recording in the first line. Returns whether it has changed."""
        if state == self.status.live:
            return False
        self.status.live = state
        self.status.show_head()
        with self.status.unasked():
            self.screen.say()
        return True

    def _go_to_end(self) -> None:
        self.screen.session.move_to_end()
        self.screen.show_view()

    def _request_read(self) -> None:
        if not self._reads.busy:
            self._reads.want(self._read)

    def _read(self, deliver: Deliver[RecordingUpdate], _cancelled: Cancelled) -> None:
        """Off the screen's thread: read the new steps, and make the longer series."""
        session, columns = self.screen.session, self._columns
        source, shown = session.sources.tail, session.recorded.history
        assert source is not None
        assert columns is not None
        tail = source(columns.last)
        columns.append(tail.steps)
        grown = None
        if (
            columns.length > session.recording.num_steps
        ):  # also true for steps of an earlier read not shown yet
            recording = session.recording.with_steps(columns.views)
            history = recorded_history(recording, shown.rows)
            grown = recording, Series(replace(history, request_steps=shown.request_steps))
        whole = None if tail.live or session.sources.recording is None else session.sources.recording()
        deliver(RecordingUpdate(tail, grown, whole))

    def _unreadable(self, error: str) -> None:
        """The trace is just being published again, or is gone: the next read tries again."""
        if self._show_state("RECORDING, cannot be read now"):
            self.screen.fail(error)

    def _take_in(self, growth: RecordingUpdate) -> None:
        if growth.tail.standstill != self.status.standstill:
            self.status.standstill = growth.tail.standstill
            self.status.show_head()
        if growth.grown is not None:
            self._show_grown(*growth.grown)
        if not growth.tail.live:
            self._ended(growth.whole)
        elif growth.tail.silent_s < SILENT:
            self._show_state("RECORDING")
        elif self._show_state(f"RECORDING, nothing new for {SILENT:.0f} s"):
            self.screen.say("its collector may be gone: then `fdtrace recover` makes a complete trace of it")

    def _show_grown(self, recording: Recording, series: Series) -> None:
        self.screen.session.grow(recording, series)
        self.panes.set_recorded(series.history, series)
        self.status.show_head()
        self.debugger.reread_events()
        with self.status.unasked():
            if self.screen.session.following:
                self._go_to_end()
            self.screen.show_window()
            self.screen.say()

    def _ended(self, whole: Recording | None) -> None:
        """The recording is complete: compute the replays of all of it."""
        if self._timer is not None:
            self._timer.stop()
        self.status.live, self.screen.session.following = "", False
        if whole is not None:
            self.screen.session.recording = whole
            self.inspector.model.renew(whole)
        self.panes.restart_all()
        self.lag.begin()
        self.status.show_head()
        self.screen.show_all()
        self.screen.say("the recording is complete; its replays start again")
