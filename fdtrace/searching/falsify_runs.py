"""Runs the cases of a search, in this process or in several.

A process of several reads the options again: so a formula may come from a file, and each has its own real scheduler.
"""

from __future__ import annotations

import argparse
from collections.abc import Generator, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, ExitStack

from fdtrace.recorder.errors import TargetError
from fdtrace.replayer.search.draw_case import SearchCase
from fdtrace.replayer.search.falsifier import CaseOutcome, SearchTarget
from fdtrace.worker_processes import WorkerProcesses

FIRST_CASES = 512
"""Cases of the model that run here before any process is started: many searches end sooner."""
CASES_A_TASK = 8
"""Cases of the model that go to a process at once: it runs about a thousand a second."""


class FalsifyRuns(AbstractContextManager["FalsifyRuns"]):
    """Where the cases of one search are run."""

    def __init__(self, args: argparse.Namespace, target: SearchTarget, jobs: int) -> None:
        self._args, self._target, self._jobs = args, target, jobs
        self._at_once = CASES_A_TASK if target.run_by is None else 1
        self._left = FIRST_CASES if target.run_by is None else 0
        self._workers: WorkerProcesses | None = None

    def outcomes(self, cases: Sequence[SearchCase]) -> Generator[CaseOutcome | None, None, None]:
        """The outcome of each case, in order; None: it is refused. TargetError: a process was killed."""
        if self._jobs == 1 or self._left > 0:
            for case in cases:
                yield self._target.outcome(case)
            self._left -= len(cases)
            return
        if self._workers is None:
            self._workers = WorkerProcesses(self._jobs, _SearchWorker, self._args)
        parts = [cases[i : i + self._at_once] for i in range(0, len(cases), self._at_once)]
        futures: list[Future[list[CaseOutcome | None]]] = [
            self._workers.submit(_outcomes, list(part)) for part in parts
        ]
        try:
            for future in futures:
                yield from future.result()
        except BrokenProcessPool:
            raise TargetError(
                "a process of this search was killed",
                why="the machine may be short of memory",
                hint="--jobs 1",
            ) from None
        finally:
            for future in futures:
                future.cancel()

    def __exit__(self, *error: object) -> None:
        if self._workers is not None:
            self._workers.__exit__(*error)


class _SearchWorker:
    """The search in a process of the pool."""

    def __init__(self, args: argparse.Namespace) -> None:
        from fdtrace.searching.search_options import by_real_scheduler, searched

        self._stack = ExitStack()
        self.target = self._stack.enter_context(by_real_scheduler(searched(args, args.find))).target

    def close(self) -> None:
        """End the process of an engine's real scheduler."""
        self._stack.close()


def _outcomes(worker: _SearchWorker, cases: list[SearchCase]) -> list[CaseOutcome | None]:
    return [worker.target.outcome(case) for case in cases]
