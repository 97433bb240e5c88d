"""Processes of this machine that work for a command: the pool of sweeps, of searches and of the replays of one trace.

A worker starts afresh (`spawn`) and does not import the caller's main module: a script may have no `__main__` guard. It
leaves Ctrl-C to its owner, and ends when its owner closes the pool in the middle of the work, or dies: it then reads
the end of a pipe whose other side only the owner holds.
"""

from __future__ import annotations

import _thread
import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.util import Finalize
from types import ModuleType
from typing import Any, Protocol, TypeVar

GRACE = 3.0
"""Seconds that a worker's task has to end by itself, as by Ctrl-C, when the pool is given up."""


class WorkerState(Protocol):
    """What a worker keeps from one task to the next."""

    def close(self) -> object:
        """End what it started."""


S = TypeVar("S", bound=WorkerState)
T = TypeVar("T")
R = TypeVar("R")


def num_processors() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class NotSendableError(Exception):
    """A value cannot be sent to another process: it is of code that only this one has, such as that of a notebook."""


class WorkerProcesses(AbstractContextManager["WorkerProcesses"]):
    """A pool of processes. A process begins with its first task.

    If its use ends with an exception, tasks that run are interrupted; else all submitted tasks are waited for.
    """

    def __init__(
        self, most: int, begin: Callable[..., WorkerState], *arguments: Any, num_shares: int = 0
    ) -> None:
        """
        Args:
            most: how many processes at most.
            begin: makes the state of a process, from `arguments`, before its first task.
            arguments: are sent to each process.
            num_shares: how many tasks report the share that is done, by `report_share`.

        Raises:
            NotSendableError: an argument cannot be sent.
        """
        context = multiprocessing.get_context("spawn")
        self.shares: Any = context.RawArray("d", max(1, num_shares))
        """The share done of each task that reports it, 0 to 1."""
        given = _dumped((begin, arguments))
        ends, self._lifeline = context.Pipe(duplex=False)
        self._pool = ProcessPoolExecutor(most, context, _begin, (ends, self.shares, given))
        self._ends = ends

    def submit(self, work: Callable[[S, T], R], value: T) -> Future[R]:
        """Let a process do `work(state, value)`. Both are sent by pickle; `work` is a function of a module.

        The future raises what `work` raises, and `BrokenProcessPool` if its process was killed.

        Raises:
            NotSendableError: the value cannot be sent.
            OSError: no process can be started.
        """
        task = _dumped((work, value))
        resource_tracker.ensure_running()  # its start would unblock the signal
        with _interrupts_blocked(), _without_main_module():
            return self._pool.submit(_run, task)

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            self._lifeline.close()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._lifeline.close()
        self._ends.close()


def _dumped(value: object) -> bytes:
    try:
        with _without_main_module():
            return pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    except Exception as error:  # pickling runs code of the value's classes
        raise NotSendableError(f"{type(error).__name__}: {error}") from error


@contextmanager
def _without_main_module() -> Iterator[None]:
    """A context in which the main module is empty: a process that starts does not import it, and nothing of it can be
    pickled.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """A context in which this thread takes no SIGINT; a process that starts in it never takes one."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# In a worker


class _Worker:
    """This process, as a worker."""

    def __init__(self, ends: Connection, shares: Any, given: bytes) -> None:
        self.shares, self._given = shares, given
        self._state: WorkerState | None = None
        self._is_idle = threading.Event()
        self._is_idle.set()
        threading.Thread(target=self._end_with_owner, args=(ends,), daemon=True).start()

    def run(self, task: bytes) -> Any:
        """Do a task."""
        self._is_idle.clear()
        try:
            if self._state is None:
                begin, arguments = pickle.loads(self._given)
                self._state = begin(*arguments)
                Finalize(None, self._state.close, exitpriority=1)  # a process of a pool runs no `atexit`
            work, value = pickle.loads(task)
            return work(self._state, value)
        finally:
            self._is_idle.set()

    def _end_with_owner(self, ends: Connection) -> None:
        wait([ends])  # nothing is ever sent: it is readable when the owner has closed its side, or has died
        if not self._is_idle.is_set():
            _thread.interrupt_main()
            self._is_idle.wait(GRACE)
        if self._state is not None:
            with suppress(Exception):
                self._state.close()
        os._exit(1)


_worker: _Worker | None = None


def _begin(ends: Connection, shares: Any, given: bytes) -> None:
    global _worker  # noqa: PLW0603 - the one state of a process of the pool
    _worker = _Worker(ends, shares, given)


def _run(task: bytes) -> Any:
    assert _worker is not None
    return _worker.run(task)


def report_share(number: int, share: float) -> None:
    """In a worker: the share that is done of the task of this number."""
    assert _worker is not None
    _worker.shares[number] = share
