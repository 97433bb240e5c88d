"""Background work: the only way off the screen's thread. If work fails, the screen shows why and goes on."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import queue
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, TypeVar

from fdtrace.recorder.errors import FdtraceError
from fdtrace.recorder.printable import printable
from fdtrace.replayer.replay.workload_replay import Cancelled

T = TypeVar("T")


Deliver = Callable[[T], None]
"""Hands a result to the screen's thread."""

Work = Callable[[Deliver[T], Cancelled], None]
"""Runs in the background thread. It may deliver several results, and should stop once it is cancelled."""

Failed = Callable[[str], None]
"""Shows, on the screen's thread, what went wrong and why."""


def sentence(error: BaseException) -> str:
    """The text of an exception for the user of the screen."""
    if isinstance(error, FdtraceError):
        return str(error)
    return printable(f"unexpected {type(error).__name__}: {error}")


def guarded(run: Callable[[], Any], failed: Failed) -> None:
    """Run a timer's call or a delivery on the screen's thread. Nothing waits for its result: an exception is shown."""
    try:
        run()
    except Exception as error:
        failed(sentence(error))


@dataclass(eq=False)
class _Piece(Generic[T]):
    """A piece of work, and its deliveries that the screen's thread has not taken yet."""

    number: int
    work: Work[T]
    loop: asyncio.AbstractEventLoop
    context: contextvars.Context
    deliveries: deque[Callable[[], None]] = field(default_factory=deque)
    ended: threading.Event = field(default_factory=threading.Event)


class Background(Generic[T]):
    """A thread for one kind of work. It does one piece of work after another.

    Only the latest requested piece counts: earlier ones are given up and deliver nothing more. Call all methods on the
    screen's thread; only the work itself runs in the thread of the background.
    """

    def __init__(
        self,
        name: str,
        deliver: Deliver[T],
        failed: Failed,
        *,
        every: bool = False,
        finish_begun: bool = False,
        wait: float = 0.0,
    ) -> None:
        """A background with no work yet. Its thread starts with the first piece of work.

        Args:
            name: a name for the thread.
            deliver: takes a result, on the screen's thread.
            failed: shows what went wrong in the work, or in `deliver`.
            every: every piece counts, in the order of the requests.
            finish_begun: a piece that has begun delivers even if another one is requested meanwhile.
            wait: seconds that the screen waits for a result if no other work is being done. A result within this time
                is painted in the same frame as the request, not in the next one.
        """
        self.name = name
        self._deliver, self._failed = deliver, failed
        self._every, self._finish_begun, self._wait = every, finish_begun, wait
        self._queue: queue.SimpleQueue[_Piece[T] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._pieces: set[_Piece[T]] = set()
        self._number = self._oldest = 0
        """The number of the last piece, and of the first piece that still counts."""
        self._closed = False

    @property
    def busy(self) -> bool:
        """Whether a piece of work has not ended."""
        return bool(self._pieces)

    def want(self, work: Work[T]) -> None:
        """Request a piece of work. It replaces earlier requests, or follows them if every piece counts."""
        if self._closed:
            return
        was_idle = not self._pieces
        self._number += 1
        if not self._every:
            self._oldest = self._number
        # A screen's widgets find their app in the context.
        piece = _Piece(self._number, work, asyncio.get_running_loop(), contextvars.copy_context())
        self._pieces.add(piece)
        self._queue.put(piece)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=f"fdtrace-{self.name}", daemon=True)
            self._thread.start()
        if self._wait and was_idle and piece.ended.wait(self._wait):
            self._take(piece)

    def drop(self) -> None:
        """Give up all requested work."""
        self._oldest = self._number + 1

    def close(self) -> None:
        """Take no more work. Work that is running is not waited for."""
        self._closed = True
        self._pieces.clear()
        self._queue.put(None)

    # In the thread

    def _run(self) -> None:
        while (piece := self._queue.get()) is not None:
            self._do(piece)

    def _do(self, piece: _Piece[T]) -> None:
        try:
            if not self._given_up(piece):
                piece.work(
                    lambda result: self._hand_over(piece, partial(self._deliver, result)),
                    partial(self._given_up, piece),
                )
        except BaseException as error:  # a user's formula may raise anything, even SystemExit
            self._hand_over(piece, partial(self._failed, sentence(error)))
        piece.ended.set()
        self._wake(piece)

    def _given_up(self, piece: _Piece[T]) -> bool:
        return self._closed or piece.number < self._oldest

    def _hand_over(self, piece: _Piece[T], call: Callable[[], None]) -> None:
        piece.deliveries.append(call)
        self._wake(piece)

    def _wake(self, piece: _Piece[T]) -> None:
        if not self._closed:
            with contextlib.suppress(
                RuntimeError
            ):  # the loop has just been closed: there is no screen any more
                piece.loop.call_soon_threadsafe(self._take, piece, context=piece.context)

    # On the screen's thread

    def _take(self, piece: _Piece[T]) -> None:
        ended = piece.ended.is_set()
        while piece.deliveries:
            call = piece.deliveries.popleft()
            if not self._closed and (self._finish_begun or not self._given_up(piece)):
                guarded(call, self._failed)
        if ended:
            self._pieces.discard(piece)
