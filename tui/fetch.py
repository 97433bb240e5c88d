"""Fetches the requests of a step off the screen's thread: one at a time, only the latest that is wanted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any

from fdtrace.recorder.errors import FdtraceError
from fdtrace.replayer.model.events import StepRow
from fdtrace.tui.series import Series

Deliver = Callable[[Series, int, Sequence[StepRow], str], None]
"""Called with the history, the step, its rows, and a sentence where they could not be had."""

Fetched = tuple[Sequence[StepRow], str]

AT_ONCE = 0.006
"""Seconds that the screen waits for rows: a third of a frame."""


class RowFetcher:
    """All histories are asked from one thread, so that a database behind them needs one cursor only."""

    def __init__(self, start: Callable[[Coroutine[Any, Any, None]], object], deliver: Deliver) -> None:
        self._start, self._deliver = start, deliver
        self._thread = ThreadPoolExecutor(1, "fdtrace-rows")
        self._wanted: tuple[Series, int] | None = None
        self.busy = False

    def want(self, series: Series, step: int) -> None:
        """Fetch the rows of a step; what is wanted meanwhile waits, only the latest of it.

        Rows that come at once are delivered at once: they are painted with the cursor, not a frame later.
        """
        if self.busy:
            self._wanted = (series, step)
            return
        future = self._thread.submit(_rows, series, step)
        try:
            rows, error = future.result(AT_ONCE)
        except FutureTimeout:  # the built-in one from Python 3.11 on
            self.busy = True
            self._start(self._fetch(series, step, future))
        else:
            self._deliver(series, step, rows, error)

    async def _fetch(self, series: Series, step: int, future: Future[Fetched]) -> None:
        try:
            while True:
                rows, error = await asyncio.wrap_future(future)
                self._deliver(series, step, rows, error)
                if self._wanted is None:
                    return
                (series, step), self._wanted = self._wanted, None
                future = self._thread.submit(_rows, series, step)
        finally:
            self.busy = False

    def close(self) -> None:
        """Take no more; one that is being fetched is not waited for."""
        self._wanted = None
        self._thread.shutdown(wait=False, cancel_futures=True)


def _rows(series: Series, step: int) -> Fetched:
    try:
        return series.history.rows(step), ""
    except FdtraceError as error:
        return (), str(error)
    except Exception as error:
        return (), f"{type(error).__name__}: {error}"
