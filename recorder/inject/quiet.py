"""While a thread of somebody's server is held, nothing may hold us up: no signal, no collection, no queue."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

_T = TypeVar("_T")


@contextlib.contextmanager
def undelayed() -> Iterator[None]:
    """Raise this thread's priority as far as we are allowed, and keep the garbage collector off."""
    collects = gc.isenabled()
    gc.disable()
    restore = _raise_priority()
    try:
        yield
    finally:
        restore()
        if collects:
            gc.enable()


def _raise_priority() -> Callable[[], None]:
    """First come, first served before all normal threads, else the best nice value; what undoes it."""
    me = threading.get_native_id()
    policy, parameters = os.sched_getscheduler(me), os.sched_getparam(me)
    try:
        os.sched_setscheduler(me, os.SCHED_FIFO, os.sched_param(1))
    except OSError:
        pass
    else:
        return lambda: os.sched_setscheduler(me, policy, parameters)
    nice = os.getpriority(os.PRIO_PROCESS, me)
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, me, -20)
        return lambda: os.setpriority(os.PRIO_PROCESS, me, nice)
    return lambda: None


def in_own_thread(work: Callable[[], _T]) -> _T:
    """Run `work` in a thread of its own with all signals blocked in both; its result or its exception.

    A thread, because the kernel lets go of what a thread traces when that thread ends, whatever it died of.
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
