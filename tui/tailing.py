"""A recording in progress: the screen takes in what is recorded, and follows until the first step back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from textual.widgets import Static

from fdtrace.recorder.recording import Recording
from fdtrace.replayer.as_recorded import recorded_history
from fdtrace.replayer.history import History
from fdtrace.tui.background import Cancelled, Deliver
from fdtrace.tui.jobs import Job
from fdtrace.tui.querying import Querying
from fdtrace.tui.series import Series
from fdtrace.tui.sources import Tail

EVERY = 0.5
"""Seconds between two looks at the trace."""

SILENT = 10.0
"""Seconds after which a collector that publishes nothing may be gone: it does so every 1.5 s, with or without steps."""


class Columns:
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
class Look:
    """What a look at the trace found: the grown recording with its series, and all of it where it has ended."""

    tail: Tail
    grown: tuple[Recording, Series] | None
    whole: Recording | None


class Tailing(Querying):
    """Looks at the trace twice a second, off the screen's thread."""

    def prepare(self) -> None:
        super().prepare()
        self._columns = Columns(self.recording.steps)
        self._looks = self.background("tail", self._take_in, self._unreadable)

    def begin(self) -> None:
        super().begin()
        if self.sources.tail is None:
            return
        self.following = True
        self._tail_timer = self.every(EVERY, self._look)
        self._show_live("RECORDING")
        self._goto_end()

    def _show_live(self, state: str) -> bool:
        """Say in the first line how the recording stands; whether that is new."""
        if state == self.live:
            return False
        self.live = state
        self.query_one("#head", Static).update(self.head(), layout=False)
        with self.unasked():
            self.show_status()
        return True

    def action_live(self) -> None:
        """Follow what is recorded, again."""
        if not self.live:
            self.show_status("this recording is complete: there is nothing to follow")
            return
        self.following = True
        self._goto_end()
        self.show_status("following; a step back stops it")

    def _goto_end(self) -> None:
        last = self.recorded.end - 1
        window = self.board.window
        if (window.start, window.end) != (window.low, window.high):
            self.board.window = window.at(last + 1 - window.span, window.span)
        self.board.move(max(last, window.low))
        self.show_view()

    def _look(self) -> None:
        if not self._looks.busy:
            self._looks.want(self._read)

    def _read(self, deliver: Deliver[Look], _cancelled: Cancelled) -> None:
        """Off the screen's thread: what was recorded since, and the series that it makes."""
        source, columns = self.sources.tail, self._columns
        assert source is not None
        tail = source(columns.last)
        columns.append(tail.steps)
        grown = None
        if columns.length > self.recording.num_steps:  # what an earlier look had read may not be shown yet
            recording = self.recording.with_steps(columns.views)
            history = recorded_history(recording, self.recorded.history.rows)
            request_steps = self.recorded.history.request_steps
            grown = recording, Series(replace(history, request_steps=request_steps))
        whole = None if tail.live or self.sources.recording is None else self.sources.recording()
        deliver(Look(tail, grown, whole))

    def _unreadable(self, error: str) -> None:
        """The trace is about to be published anew, or is gone: look again."""
        if self._show_live("RECORDING, cannot be read now"):
            self.show_failure(error)

    def _take_in(self, look: Look) -> None:
        if look.tail.standstill != self.standstill:
            self.standstill = look.tail.standstill
            self.query_one("#head", Static).update(self.head(), layout=False)
        if look.grown is not None:
            self._show_grown(*look.grown)
        if not look.tail.live:
            self._ended(look.whole)
        elif look.tail.silent_s < SILENT:
            self._show_live("RECORDING")
        elif self._show_live(f"RECORDING, nothing new for {SILENT:.0f} s"):
            self.show_status("its collector may be gone: then `fdtrace recover` makes a complete trace of it")

    def _show_grown(self, recording: Recording, series: Series) -> None:
        self.recording, self.recorded = recording, series
        self._have(series.history, series)
        self.board.widen(series)
        self.query_one("#head", Static).update(self.head(), layout=False)
        for pane in self.panes:
            pane.retitle()
        self.panes[0].redraw()
        self.read_events_anew()
        with self.unasked():
            if self.following:
                self._goto_end()
            self.show_window()
            self.show_status()

    def _have(self, history: History, series: Series) -> None:
        pane = self.panes[0]
        done = replace(pane.job.replay, compute=lambda _progress, _cancelled: history)
        pane.job = self.board.jobs[0] = Job(done, "done", 1.0, series)
        pane.seen = "done"

    def _ended(self, whole: Recording | None) -> None:
        """The recording is complete: replay all of it."""
        self._tail_timer.stop()
        self.live, self.following = "", False
        if whole is not None:
            self.recording = whole
            self._inspector.renew(whole)
        for pane in self.panes[1:]:
            pane.job.cancel()
            self.restart(pane)
        self.query_one("#head", Static).update(self.head(), layout=False)
        self.refresh_all()
        self.show_status("the recording is complete; its replays begin anew")
