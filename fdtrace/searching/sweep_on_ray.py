"""Runs the variants of a sweep on a Ray cluster.

What is swept is put into the object store once. Each variant is a task that any node may run, and that Ray runs again
if its node is lost. Results come back to this process as they are computed, so a lost node loses none.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

from fdtrace.recorder.errors import TargetError, UsageError
from fdtrace.replayer.search.sweep_grid import SweepRow
from fdtrace.searching.many_sources import runner_of_inputs
from fdtrace.searching.sweep_places import Combination
from fdtrace.searching.sweep_runner import SweepRunner
from fdtrace.searching.sweeping import SweepInput

TASKS_A_CPU = 4
"""Tasks on their way for each processor of the cluster: enough that none waits for its next one."""
LEAST_TASKS = 16
ALWAYS = -1
"""A task is run again as often as its node is lost. An error of fdtrace itself is no reason to."""


def ray_address(text: str) -> str | None:
    """The address of `--on`: `ray` is RAY_ADDRESS, a cluster of this machine, or else a new one. UsageError."""
    if text == "ray":
        return None
    if text.startswith("ray://") and len(text) > len("ray://"):
        return text
    raise UsageError(f"--on {text:.60} is no place", hint="--on ray, or --on ray://HOST:10001")


class RayCluster(AbstractContextManager["RayCluster"]):
    """A connection to a cluster, with what is swept in its object store."""

    def __init__(self, worker: SweepRunner, address: str | None) -> None:
        """UsageError: Ray is not installed. TargetError: the cluster cannot be reached."""
        try:
            import ray
        except ImportError:
            raise UsageError(
                "a sweep on a cluster needs Ray, which is not installed here",
                hint="python -m pip install 'fdtrace[ray]', in the environment of each node",
            ) from None
        self._ray = ray
        self._is_ours = not ray.is_initialized()
        try:
            if self._is_ours:
                ray.init(address=address, log_to_driver=False, logging_level="error")
            self._input = ray.put(worker.inputs())
            self._task: Any = ray.remote(num_cpus=1, max_retries=ALWAYS)(_row)
        except (ConnectionError, ray.exceptions.RayError, RuntimeError, ValueError) as error:
            raise TargetError(
                f"the Ray cluster {address or 'of this machine'} cannot be used",
                why=str(error).strip().partition("\n")[0],
                hint="`ray status` says whether it runs; its Python and Ray must be the versions of this one",
            ) from None

    def rows(self, combinations: Sequence[Combination]) -> Iterator[tuple[int, SweepRow]]:
        """As of `SweepPlace`."""
        ray, waiting = self._ray, dict[Any, int]()
        left = iter(enumerate(combinations))
        most = max(LEAST_TASKS, TASKS_A_CPU * int(ray.cluster_resources().get("CPU", 1)))
        try:
            while True:
                while len(waiting) < most and (following := next(left, None)) is not None:
                    index, settings = following
                    waiting[self._task.remote(self._input, dict(settings))] = index
                if not waiting:
                    return
                done, _ = ray.wait(list(waiting), num_returns=1)
                for reference in done:
                    yield waiting.pop(reference), ray.get(reference)
        except ray.exceptions.RayError as error:
            raise TargetError(
                "the Ray cluster failed in the middle of a sweep",
                why=(str(error).strip().splitlines() or [type(error).__name__])[-1],
                hint="with --state, what was computed is kept",
            ) from None
        finally:
            for reference in waiting:
                ray.cancel(reference, force=False)

    def __exit__(self, *_: object) -> None:
        if self._is_ours:
            self._ray.shutdown()


_workers: dict[str, SweepRunner] = {}
"""Of a process of the cluster: the last worker, by the identity of its input."""


def _row(given: Sequence[SweepInput], settings: dict[str, Any]) -> SweepRow:
    """A task: the figures of one variant. Its process keeps what it has read for the next task."""
    worker = _workers.get(given[0].identity)
    if worker is None:
        for other in _workers.values():
            other.close()
        _workers.clear()
        worker = _workers[given[0].identity] = runner_of_inputs(given, sys.executable)
    return worker.row(settings)
