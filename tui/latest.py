"""Work off the screen's thread of which only the latest counts: what was wanted before it is given up."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

from fdtrace.recorder.errors import FdtraceError
from fdtrace.recorder.printable import printable
from fdtrace.tui.jobs import Cancelled

T = TypeVar("T")

Deliver = Callable[[T], None]
"""Called on the screen's thread, with what the work said."""

Work = Callable[[Deliver[T], Cancelled], None]
"""Runs in the worker's thread; may deliver several times, and is to stop once cancelled."""


class Latest(Generic[T]):
    """One thread. `want` replaces what is wanted; what was wanted before delivers nothing any more."""

    def __init__(self, name: str, deliver: Deliver[T], failed: Callable[[str], None]) -> None:
        self._deliver, self._failed = deliver, failed
        self._thread = ThreadPoolExecutor(1, f"fdtrace-{name}")
        self._number = 0
        self._closed = False
        self.running = 0
        """Pieces of work that have not ended."""

    def want(self, work: Work[T]) -> None:
        """Do this next; call it on the screen's thread."""
        self._number += 1
        number, loop = self._number, asyncio.get_running_loop()
        context = contextvars.copy_context()  # a screen's widgets find their app in it

        def cancelled() -> bool:
            return self._closed or number != self._number

        def hand(call: Callable[[T], None], what: T) -> None:
            def take() -> None:
                if not cancelled():
                    call(what)

            if not self._closed:
                loop.call_soon_threadsafe(take, context=context)

        def ended() -> None:
            self.running -= 1

        def run() -> None:
            try:
                if cancelled():
                    return
                work(lambda what: hand(self._deliver, what), cancelled)
            except Exception as error:
                text = (
                    str(error)
                    if isinstance(error, FdtraceError)
                    else printable(f"{type(error).__name__}: {error}")
                )
                hand(lambda _: self._failed(text), None)  # type: ignore[arg-type]
            finally:
                if not self._closed:
                    loop.call_soon_threadsafe(ended)

        self.running += 1
        self._thread.submit(run)

    def drop(self) -> None:
        """Want nothing."""
        self._number += 1

    def close(self) -> None:
        """Take no more; what runs is not waited for."""
        self._closed = True
        self._thread.shutdown(wait=False, cancel_futures=True)
