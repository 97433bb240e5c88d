"""A recording in progress: the screen takes in what is recorded, and follows until the first step back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from textual.timer import Timer

from fdtrace.recorder.trace.recording import Recording
from fdtrace.replayer.history.as_recorded import recorded_history
from fdtrace.replayer.replay.run import Cancelled
from fdtrace.tui.background import Deliver
from fdtrace.tui.debugger.controller import Debugger
from fdtrace.tui.inspector.controller import InspectorController
from fdtrace.tui.panes.controller import Panes
from fdtrace.tui.panes.series import Series
from fdtrace.tui.screen import ReplayScreen
from fdtrace.tui.sources import NewSteps
from fdtrace.tui.status_lines import StatusLines

EVERY = 0.5
"""Seconds between two looks at the trace."""

SILENT = 10.0
"""Seconds after which a collector that publishes nothing may be gone: it does so every 1.5 s, with or without steps."""


class GrowingColumns:
    """Columns that grow: room is doubled, so that a row is copied a few times at most; those given stay as they are."""

    def __init__(self, columns: Mapping[str, NDArray[Any]]) -> None:
        self.length = len(columns["step"])
        self._room = {name: np.asarray(column) for name, column in columns.items()}

    def append(self, more: Mapping[str, NDArray[Any]]) -> None:
        """Add rows; a column that they lack is as unknown as its type allows."""
        count = len(more["step"])
        for name, full in list(self._room.items()):
            room = full
            if self.length + count > len(full):
                room = np.empty(max(2 * len(full), self.length + count, 1024), full.dtype)
                room[: self.length] = full[: self.length]
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
class Growth:
    """What a look at the trace brought: the grown recording with its series, and all of it where it has ended."""

    tail: NewSteps
    grown: tuple[Recording, Series] | None
    whole: Recording | None


class Live:
    """Looks at the trace twice a second, off the screen's thread."""

    def __init__(
        self,
        screen: ReplayScreen,
        panes: Panes,
        debugger: Debugger,
        inspector: InspectorController,
        status: StatusLines,
    ) -> None:
        self.screen, self.panes, self.status = screen, panes, status
        self.debugger, self.inspector = debugger, inspector
        self._columns = GrowingColumns(screen.session.recording.steps)
        self._looks = screen.background("tail", self._take_in, self._unreadable)
        self._timer: Timer | None = None

    def begin(self) -> None:
        """Follow, where the recording is in progress."""
        session = self.screen.session
        if session.sources.tail is None:
            return
        session.following = True
        self._timer = self.screen.every(EVERY, self._look)
        self._show_state("RECORDING")
        self._go_to_end()

    def follow(self) -> None:
        """Follow what is recorded, again."""
        if not self.status.live:
            self.screen.say("this recording is complete: there is nothing to follow")
            return
        self.screen.session.following = True
        self._go_to_end()
        self.screen.say("following; a step back stops it")

    def _show_state(self, state: str) -> bool:
        """Say in the first line how the recording stands; whether that is new."""
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

    def _look(self) -> None:
        if not self._looks.busy:
            self._looks.want(self._read)

    def _read(self, deliver: Deliver[Growth], _cancelled: Cancelled) -> None:
        """Off the screen's thread: what was recorded since, and the series that it makes."""
        session, columns = self.screen.session, self._columns
        source, known = session.sources.tail, session.recorded.history
        assert source is not None
        tail = source(columns.last)
        columns.append(tail.steps)
        grown = None
        if columns.length > session.recording.num_steps:  # what an earlier look had read may not be shown yet
            recording = session.recording.with_steps(columns.views)
            history = recorded_history(recording, known.rows)
            grown = recording, Series(replace(history, request_steps=known.request_steps))
        whole = None if tail.live or session.sources.recording is None else session.sources.recording()
        deliver(Growth(tail, grown, whole))

    def _unreadable(self, error: str) -> None:
        """The trace is about to be published anew, or is gone: look again."""
        if self._show_state("RECORDING, cannot be read now"):
            self.screen.fail(error)

    def _take_in(self, growth: Growth) -> None:
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
        self.debugger.read_events_anew()
        with self.status.unasked():
            if self.screen.session.following:
                self._go_to_end()
            self.screen.show_window()
            self.screen.say()

    def _ended(self, whole: Recording | None) -> None:
        """The recording is complete: replay all of it."""
        if self._timer is not None:
            self._timer.stop()
        self.status.live, self.screen.session.following = "", False
        if whole is not None:
            self.screen.session.recording = whole
            self.inspector.model.renew(whole)
        self.panes.restart_all()
        self.status.show_head()
        self.screen.show_all()
        self.screen.say("the recording is complete; its replays begin anew")
