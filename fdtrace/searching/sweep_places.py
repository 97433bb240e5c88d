"""Where the variants of a sweep are run: in this process, or in processes of this machine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager
from typing import Protocol

from fdtrace.recorder.errors import TargetError
from fdtrace.replayer.search.sweep_grid import SweepRow, SweepValue
from fdtrace.searching.many_sources import runner_of
from fdtrace.searching.sweep_runner import SweepRunner
from fdtrace.searching.sweeping import SweepSource
from fdtrace.worker_processes import WorkerProcesses

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

    def __init__(self, worker: SweepRunner) -> None:
        self.worker = worker

    def rows(self, combinations: Sequence[Combination]) -> Iterator[tuple[int, SweepRow]]:
        """As of `SweepPlace`."""
        for index, settings in enumerate(combinations):
            yield index, self.worker.row(settings)

    def __exit__(self, *_: object) -> None:
        """Nothing is to be ended: the worker is its owner's."""


class ManyProcesses(AbstractContextManager["ManyProcesses"]):
    """Processes of this machine. Each reads the sources once."""

    def __init__(self, sources: Sequence[SweepSource], jobs: int) -> None:
        self._workers = WorkerProcesses(jobs, runner_of, sources)

    def rows(self, combinations: Sequence[Combination]) -> Iterator[tuple[int, SweepRow]]:
        """As of `SweepPlace`."""
        try:
            futures = {self._workers.submit(_row, settings): i for i, settings in enumerate(combinations)}
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool:
            raise TargetError(
                "a process of this sweep was killed",
                why="the machine may be short of memory",
                hint="--jobs 1; with --state, what was computed is kept",
            ) from None

    def __exit__(self, *error: object) -> None:
        self._workers.__exit__(*error)


def _row(worker: SweepRunner, settings: Combination) -> SweepRow:
    return worker.row(settings)
