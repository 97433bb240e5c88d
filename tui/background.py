"""The one way off the screen's thread. What fails there is shown where it was asked for, and the screen goes on."""

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
from fdtrace.replayer.replay.run import Cancelled

T = TypeVar("T")


Deliver = Callable[[T], None]
"""Hands a result to the screen's thread."""

Work = Callable[[Deliver[T], Cancelled], None]
"""Runs in the background's thread; may deliver several times, and is to stop once cancelled."""

Failed = Callable[[str], None]
"""Shows, on the screen's thread, what went wrong and why."""


def sentence(error: BaseException) -> str:
    """What an exception says to whoever is at the screen."""
    if isinstance(error, FdtraceError):
        return str(error)
    return printable(f"unexpected {type(error).__name__}: {error}")


def guarded(run: Callable[[], Any], failed: Failed) -> None:
    """Run something on the screen's thread for which nobody waits (a timer, a delivery): what fails is shown."""
    try:
        run()
    except Exception as error:
        failed(sentence(error))


@dataclass(eq=False)
class _Piece(Generic[T]):
    """A piece of work, and what it has handed over that was not taken yet."""

    number: int
    work: Work[T]
    loop: asyncio.AbstractEventLoop
    context: contextvars.Context
    handed: deque[Callable[[], None]] = field(default_factory=deque)
    ended: threading.Event = field(default_factory=threading.Event)


class Background(Generic[T]):
    """A thread for one kind of work, done piece after piece. Call everything but the work on the screen's thread.

    Only the latest piece that was wanted counts: what was wanted before is given up, and delivers nothing any more.
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
        """`failed` shows what went wrong in the work, or in `deliver`.

        Args:
            every: each piece counts, in the order in which they were wanted.
            finish_begun: a piece that has begun delivers, though another was wanted meanwhile.
            wait: seconds that the screen waits for a result when nothing else is being done: what comes within them
                is painted with what asked for it, not a frame later.
        """
        self.name = name
        self._deliver, self._failed = deliver, failed
        self._every, self._finish_begun, self._wait = every, finish_begun, wait
        self._queue: queue.SimpleQueue[_Piece[T] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._pieces: set[_Piece[T]] = set()
        self._number = self._oldest = 0
        """Of the last piece, and of the first that still counts."""
        self._closed = False

    @property
    def busy(self) -> bool:
        """Whether a piece of work has not ended."""
        return bool(self._pieces)

    def want(self, work: Work[T]) -> None:
        """Do this next, or after what was wanted before where every piece counts."""
        if self._closed:
            return
        alone = not self._pieces
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
        if self._wait and alone and piece.ended.wait(self._wait):
            self._take(piece)

    def drop(self) -> None:
        """Want nothing."""
        self._oldest = self._number + 1

    def close(self) -> None:
        """Take no more; what is being done is not waited for."""
        self._closed = True
        self._pieces.clear()
        self._queue.put(None)

    # In the thread

    def _run(self) -> None:
        while (piece := self._queue.get()) is not None:
            self._do(piece)

    def _do(self, piece: _Piece[T]) -> None:
        begun = not self._given_up(piece)
        try:
            if begun:
                piece.work(
                    lambda what: self._hand(piece, partial(self._deliver, what)),
                    partial(self._given_up, piece),
                )
        except BaseException as error:  # a formula of the user's may raise anything, SystemExit too
            self._hand(piece, partial(self._failed, sentence(error)))
        piece.ended.set()
        self._wake(piece)

    def _given_up(self, piece: _Piece[T]) -> bool:
        return self._closed or piece.number < self._oldest

    def _hand(self, piece: _Piece[T], call: Callable[[], None]) -> None:
        piece.handed.append(call)
        self._wake(piece)

    def _wake(self, piece: _Piece[T]) -> None:
        if not self._closed:
            with contextlib.suppress(RuntimeError):  # the loop has just been closed: nobody looks any more
                piece.loop.call_soon_threadsafe(self._take, piece, context=piece.context)

    # On the screen's thread

    def _take(self, piece: _Piece[T]) -> None:
        ended = piece.ended.is_set()
        while piece.handed:
            call = piece.handed.popleft()
            if not self._closed and (self._finish_begun or not self._given_up(piece)):
                guarded(call, self._failed)
        if ended:
            self._pieces.discard(piece)
