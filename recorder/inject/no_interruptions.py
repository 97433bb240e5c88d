"""While we hold a thread of somebody's server, nothing may delay us: no signal, no garbage collection, no run queue.

On a loaded server, a process that wakes up may wait half a second for a processor, again and again. An attach took 2 s
there, and all but 0.1 s of it were such waits. So our few milliseconds of work go before all other work.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

_T = TypeVar("_T")
_LONGEST_REST_S = 0.02
_rested_at = 0.0


@contextlib.contextmanager
def run_uninterrupted() -> Iterator[None]:
    """Raise this thread's priority as far as we are allowed, and keep the garbage collector off."""
    collects = gc.isenabled()
    gc.disable()
    try:
        with first_in_line():
            yield
    finally:
        if collects:
            gc.enable()


@contextlib.contextmanager
def first_in_line() -> Iterator[None]:
    """Raise the priority of this thread, and of the threads that it starts in this context, as far as we may."""
    global _rested_at  # noqa: PLW0603
    if not is_first_in_line():
        _rested_at = time.perf_counter()
    restore = _raise_priority()
    try:
        yield
    finally:
        restore()


def rest() -> None:
    """Give the processor back for a while, if this thread goes before all others.

    It sleeps for as long as it has run since the last rest, at most 20 ms. So a server whose processors are all busy
    can go on in between.
    """
    global _rested_at  # noqa: PLW0603
    if is_first_in_line():
        time.sleep(min(time.perf_counter() - _rested_at, _LONGEST_REST_S))
    _rested_at = time.perf_counter()


def is_first_in_line() -> bool:
    """Whether this thread runs before all normal threads."""
    return os.sched_getscheduler(0) == os.SCHED_FIFO


def put_first(thread: int) -> bool:
    """Let a thread run before all normal threads (SCHED_FIFO). Returns whether that is allowed."""
    try:
        os.sched_setscheduler(thread, os.SCHED_FIFO, os.sched_param(1))
    except OSError:
        return False
    return True


def _raise_priority() -> Callable[[], None]:
    """Go before all normal threads; if that is not allowed, take the best nice value. Returns what undoes it."""
    me = threading.get_native_id()
    policy, parameters = os.sched_getscheduler(me), os.sched_getparam(me)
    if put_first(me):
        return lambda: os.sched_setscheduler(me, policy, parameters)
    nice = os.getpriority(os.PRIO_PROCESS, me)
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, me, -20)
        return lambda: os.setpriority(os.PRIO_PROCESS, me, nice)
    return lambda: None


def in_own_thread(work: Callable[[], _T]) -> _T:
    """Run `work` in a thread of its own, with all signals blocked in both threads. Returns its result or raises its
    exception.

    A thread of its own, because the kernel detaches all that a thread traces when that thread ends, for any reason.
    """
    outcome: list[_T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(work())
        except BaseException as error:
            failure.append(error)

    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        worker = threading.Thread(target=run, name="fdtrace-inject")
        worker.start()
        worker.join()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if failure:
        raise failure[0]
    return outcome[0]
