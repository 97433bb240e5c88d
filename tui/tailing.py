"""A recording in progress: the screen takes in what is recorded, and follows until the first step back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from textual.widgets import Static

from fdtrace.recorder.errors import FdtraceError
from fdtrace.recorder.recording import Recording
from fdtrace.replayer.history.as_recorded import recorded_history
from fdtrace.replayer.history.history import History
from fdtrace.tui.jobs import Job
from fdtrace.tui.querying import Querying
from fdtrace.tui.series import Series
from fdtrace.tui.sources import Tail

EVERY = 0.5
"""Seconds between two looks at the trace."""


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
    def views(self) -> dict[str, NDArray[Any]]:
        """The columns so far, without a copy."""
        return {name: room[: self.length] for name, room in self._room.items()}


class Tailing(Querying):
    """Looks at the trace twice a second, in a worker."""

    def prepare(self) -> None:
        super().prepare()
        self._columns = Columns(self.recording.steps)
        self._looking = False

    def begin(self) -> None:
        super().begin()
        if self.sources.tail is None:
            return
        self.following = True
        self.tailing = Tail({"step": np.zeros(0, np.int64)}, live=True)
        self._tail_timer = self.set_interval(EVERY, self._look)
        self.query_one("#head", Static).update(self.head(), layout=False)
        self._goto_end()

    def action_live(self) -> None:
        """Follow what is recorded, again."""
        if self.tailing is None:
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
        if not self._looking and self.tailing is not None:
            self._looking = True
            self.run_worker(self._read, thread=True, group="tail")

    def _read(self) -> None:
        """In the worker: what was recorded since, and the series that it makes."""
        source = self.sources.tail
        assert source is not None
        last = self.recorded.end - 1 if len(self.recorded) else -1
        try:
            tail = source(last)
            series = self._grown(tail) if len(tail) else None
            whole = None if tail.live or self.sources.recording is None else self.sources.recording()
        except FdtraceError as error:
            self.call_from_thread(self._failed, str(error).splitlines()[0])
            return
        self.call_from_thread(self._take_in, tail, series, whole)

    def _grown(self, tail: Tail) -> Series:
        self._columns.append(tail.steps)
        recording = replace(self.recording, steps=self._columns.views)
        history = recorded_history(recording, self.recorded.history.rows)
        return Series(replace(history, request_steps=self.recorded.history.request_steps))

    def _failed(self, error: str) -> None:
        """The trace is about to be published anew, or is gone: look again."""
        self._looking = False
        self.show_status(f"cannot read the recording just now: {error}")

    def _take_in(self, tail: Tail, series: Series | None, whole: Recording | None) -> None:
        self._looking = False
        self.tailing = tail
        if series is not None:
            self._show_grown(series)
        if not tail.live:
            self._ended(whole)

    def _show_grown(self, series: Series) -> None:
        self.recording = replace(self.recording, steps=series.history.columns)
        self.recorded = series
        self._have(series.history, series)
        self.board.widen(series)
        self.query_one("#head", Static).update(self.head(), layout=False)
        for pane in self.panes:
            pane.retitle()
        if self.following:
            self._goto_end()
        self.panes[0].redraw()
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
        self.tailing, self.following = None, False
        if whole is not None:
            self.recording = whole
            self._inspector.renew(whole)
        for pane in self.panes[1:]:
            pane.job.cancel()
            self.restart(pane)
        self.query_one("#head", Static).update(self.head(), layout=False)
        self.refresh_all()
        self.show_status("the recording is complete; its replays begin anew")
