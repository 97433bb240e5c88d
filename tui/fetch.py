"""Fetches the requests of a step off the screen's thread: one at a time, only the latest that is wanted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from recorder.errors import FdtraceError
from replayer.history import StepRow
from tui.series import Series

Deliver = Callable[[Series, int, Sequence[StepRow], str], None]
"""Called with the history, the step, its rows, and a sentence where they could not be had."""


class RowFetcher:
    """All histories are asked from one thread, so that a database behind them needs one cursor only."""

    def __init__(self, start: Callable[[Coroutine[Any, Any, None]], object], deliver: Deliver) -> None:
        self._start, self._deliver = start, deliver
        self._thread = ThreadPoolExecutor(1, "fdtrace-rows")
        self._wanted: tuple[Series, int] | None = None
        self.busy = False

    def want(self, series: Series, step: int) -> None:
        """Fetch the rows of a step; what is wanted meanwhile waits, only the latest of it."""
        self._wanted = (series, step)
        if not self.busy:
            self.busy = True
            self._start(self._fetch())

    async def _fetch(self) -> None:
        try:
            while self._wanted is not None:
                (series, step), self._wanted = self._wanted, None
                rows, error = await asyncio.get_running_loop().run_in_executor(
                    self._thread, _rows, series, step
                )
                self._deliver(series, step, rows, error)
        finally:
            self.busy = False

    def close(self) -> None:
        """Take no more; one that is being fetched is not waited for."""
        self._wanted = None
        self._thread.shutdown(wait=False, cancel_futures=True)


def _rows(series: Series, step: int) -> tuple[Sequence[StepRow], str]:
    try:
        return series.history.rows(step), ""
    except FdtraceError as error:
        return (), str(error)
    except Exception as error:
        return (), f"{type(error).__name__}: {error}"
