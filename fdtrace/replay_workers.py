"""Replays of one recording in worker processes: how many pay, and how their results come back.

A replay's result holds its workload. That can be large, and its block keys may be closures. So it is not sent: the
rows of a received history read the receiver's own workload, which is equal, and is made when somebody asks for rows.
"""

from __future__ import annotations

import io
import multiprocessing
import pickle
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor, Future, wait
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from fdtrace.recorder.errors import UsageError
from fdtrace.worker_processes import NotSendableError, WorkerProcesses, num_processors

if TYPE_CHECKING:
    from fdtrace.replayer.history.history import History
    from fdtrace.replayer.history.lives import RequestLives
    from fdtrace.replayer.model.events import StepRow
    from fdtrace.replayer.workload.workload import Workload

LEAST_STEPS = 150_000
"""Steps of all replays together from which processes pay in pure Python: `benchmarks/replay_workers.py`."""
STEPS_OF_A_REAL_SCHEDULER = 20
"""Steps of the model in the time of one step of an engine's real scheduler, at least."""
WORKER_BYTES, STEP_BYTES = 200 << 20, 1000
"""Memory of a worker: its modules, and what a recording and its replay take for each step."""
LOOKS_EVERY = 0.1
"""Seconds between two looks at the progress."""

WORKLOAD = "workload"


def num_replay_processes(jobs: int | None, num_steps: int, is_real: Sequence[bool]) -> int:
    """How many processes compute the replays of a recording; 0: none beside this one.

    Args:
        jobs: how many at most, as the user says; None: so many as pay.
        num_steps: of the recording.
        is_real: for each replay, whether an engine's real scheduler schedules.

    Raises:
        UsageError: `jobs` is less than 1.
    """
    if jobs is not None and jobs < 1:
        raise UsageError(f"{jobs} processes cannot replay", hint="1 or more")
    if multiprocessing.current_process().daemon:  # a process of somebody's pool: it may have no children
        return 0
    most = min(len(is_real), num_processors() if jobs is None else jobs)
    if jobs is None:
        steps = num_steps * sum(STEPS_OF_A_REAL_SCHEDULER if real else 1 for real in is_real)
        most = min(most, _num_for_memory(num_steps)) if steps >= LEAST_STEPS else 0
    return most if most > 1 else 0


def _num_for_memory(num_steps: int) -> int:
    import psutil

    return int(psutil.virtual_memory().available // (WORKER_BYTES + num_steps * STEP_BYTES))


@dataclass(frozen=True)
class SentHistory:
    """A history on its way to another process."""

    history: History
    """Without its rows."""
    readers: bytes
    """What reads its rows, without the workload."""


class _Dump(pickle.Pickler):
    def __init__(self, file: io.BytesIO, workload: Workload) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self._workload = workload

    def persistent_id(self, obj: Any) -> str | None:
        return WORKLOAD if obj is self._workload else None


class _Load(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, workload: Workload) -> None:
        super().__init__(file)
        self._workload = workload

    def persistent_load(self, pid: Any) -> Workload:
        return self._workload


def sent_history(history: History, workload: Workload) -> SentHistory:
    """A history of `workload`, to be sent to another process."""
    file = io.BytesIO()
    _Dump(file, workload).dump((history.rows, history.request_steps, history.lives))
    return SentHistory(replace(history, rows=_no_rows, request_steps=None, lives=None), file.getvalue())


def _no_rows(step: int) -> list[StepRow]:
    return []


def received_history(sent: SentHistory, workload: Callable[[], Workload]) -> History:
    """The history that another process sent; `workload` gives an equal workload, if rows are asked for."""
    readers = ReceivedReaders(sent.readers, workload)
    return replace(sent.history, rows=readers.rows, request_steps=readers.request_steps, lives=readers.lives)


class ReceivedReaders:
    """Reads the rows of a received history."""

    def __init__(self, readers: bytes, workload: Callable[[], Workload]) -> None:
        self._readers, self._workload = readers, workload

    @cached_property
    def _read(self) -> Any:
        return _Load(io.BytesIO(self._readers), self._workload()).load()

    def rows(self, step: int) -> list[StepRow]:
        """As of `History`."""
        found: list[StepRow] = self._read[0](step)
        return found

    def request_steps(self, request_id: str) -> list[tuple[int, StepRow]]:
        """As of `History`."""
        found: list[tuple[int, StepRow]] = self._read[1](request_id)
        return found

    def lives(self) -> RequestLives | None:
        """As of `History`."""
        found: RequestLives | None = self._read[2]()
        return found


class SubmittedReplays:
    """Replays that worker processes compute. What cannot be sent is computed in this process, and so is whatever fails
    in a worker: if that is an error of the replay, it is raised here as without workers.
    """

    def __init__(
        self, workers: WorkerProcesses, work: Callable[[Any, Any], SentHistory], tasks: Sequence[object]
    ) -> None:
        """
        Args:
            workers: the pool; it has a share for each task.
            work: what a worker does with a task.
            tasks: what is sent for each replay.
        """
        self._workers = workers
        self._futures: list[Future[SentHistory] | None] = []
        for task in tasks:
            try:
                self._futures.append(workers.submit(work, task))
            except (NotSendableError, OSError, BrokenExecutor):
                self._futures.append(None)

    def histories(
        self,
        here: Callable[[int], History],
        workload: Callable[[int], Workload],
        show: Callable[[int, float], None],
    ) -> list[History]:
        """The histories, in the order of the tasks. Of several that fail, the first one's error is raised.

        Args:
            here: computes one in this process, by its index.
            workload: gives the workload of one.
            show: is told the index of the replay that is waited for, and the share of it that is done.
        """
        early = {i: _kept(here, i) for i, future in enumerate(self._futures) if future is None}
        histories: list[History] = []
        for i, future in enumerate(self._futures):
            sent = None if future is None else self._result(future, i, show)
            if sent is not None:
                histories.append(received_history(sent, partial(workload, i)))
            elif i not in early:
                histories.append(here(i))
            elif isinstance(early[i], Exception):
                raise early[i]
            else:
                histories.append(early[i])
        return histories

    def _result(
        self, future: Future[SentHistory], index: int, show: Callable[[int, float], None]
    ) -> SentHistory | None:
        """What a worker sent; None: it failed."""
        while not wait([future], LOOKS_EVERY).done:
            show(index, float(self._workers.shares[index]))
        with suppress(Exception):
            return future.result()
        return None


def _kept(here: Callable[[int], History], index: int) -> Any:
    """A history, or the exception of its replay: one that stands before it may fail too, and is told first."""
    try:
        return here(index)
    except Exception as error:
        return error
