"""Where the variants of a sweep are run: in this process, or in processes of this machine."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager
from multiprocessing.util import Finalize
from typing import Protocol

from fdtrace.recorder.errors import TargetError
from fdtrace.replayer.search.sweep_grid import SweepRow, SweepValue
from fdtrace.searching.sweeping import SweepSource, SweepWorker

Combination = Mapping[str, SweepValue]
"""The settings of one variant."""


class SweepPlace(Protocol):
    """Runs variants. Use it as a context manager."""

    def rows(self, combinations: Sequence[Combination]) -> Iterator[tuple[int, SweepRow]]:
        """The figures of each combination with its index, as they come, in any order.

        TargetError: what runs them has ended.
        """


class OneProcess(AbstractContextManager["OneProcess"]):
    """This process."""

    def __init__(self, worker: SweepWorker) -> None:
        self.worker = worker

    def rows(self, combinations: Sequence[Combination]) -> Iterator[tuple[int, SweepRow]]:
        """As of `SweepPlace`."""
        for index, settings in enumerate(combinations):
            yield index, self.worker.row(settings)

    def __exit__(self, *_: object) -> None:
        """Nothing is to be ended: the worker is its owner's."""


class ManyProcesses(AbstractContextManager["ManyProcesses"]):
    """Processes of this machine. Each reads the source once."""

    def __init__(self, source: SweepSource, jobs: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(jobs, context, _begin, (source,))

    def rows(self, combinations: Sequence[Combination]) -> Iterator[tuple[int, SweepRow]]:
        """As of `SweepPlace`."""
        try:
            futures = {self._pool.submit(_row, settings): i for i, settings in enumerate(combinations)}
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool:
            raise TargetError(
                "a process of this sweep was killed",
                why="the machine may be short of memory",
                hint="--jobs 1; with --state, what was computed is kept",
            ) from None

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


_worker: SweepWorker | None = None
"""Of a process of the pool."""


def _begin(source: SweepSource) -> None:
    global _worker  # noqa: PLW0603 - the one state of a process of the pool
    _worker = SweepWorker(source)
    Finalize(None, _worker.close, exitpriority=1)  # a process of a pool runs no `atexit`


def _row(settings: Combination) -> SweepRow:
    assert _worker is not None
    return _worker.row(settings)
