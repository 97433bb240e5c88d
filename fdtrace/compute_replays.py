"""Computes what `replay`, `check` and `export` ask for: the recording's history and its replays, at once."""

from __future__ import annotations

import argparse
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

from fdtrace.recorded_rows import RecordedRows
from fdtrace.recorder.errors import TraceError
from fdtrace.replay_workers import SentHistory, SubmittedReplays, num_replay_processes, sent_history
from fdtrace.worker_processes import NotSendableError, WorkerProcesses, report_share

if TYPE_CHECKING:
    from fdtrace.build_replays import Replays
    from fdtrace.recorder.trace.trace import Trace
    from fdtrace.replayer.history.history import History
    from fdtrace.replayer.workload.workload import Workload


def add_jobs_argument(parser: argparse.ArgumentParser) -> None:
    """`--jobs` of a command that computes several replays."""
    parser.add_argument(
        "--jobs",
        type=int,
        metavar="N",
        help="processes that compute replays of a complete trace (default: one a processor if the trace is long "
        "enough, else none beside this one)",
    )


def compute_replays(replays: Replays) -> list[History]:
    """The recording's history, then its replays, with the progress on stderr. An error is that of the first replay
    that fails.
    """
    from fdtrace.progress import Progress

    progress, variants = Progress(), replays.variants

    def show(i: int, share: float) -> None:
        if progress.terminal:
            progress.update(f"replaying {variants[i].name}, {i + 1} of {len(variants)}: {share:.0%}")

    def here(i: int) -> History:
        return replays.compute(variants[i], partial(show, i), None)

    def workload(i: int) -> Workload:
        return replays.experiment_of(variants[i]).workload

    with _workers(replays) as workers:
        if workers is None:
            histories = [replays.recorded(), *map(here, range(len(variants)))]
        else:
            submitted = SubmittedReplays(workers, replayed_variant, range(len(variants)))
            recorded = replays.recorded()
            replays.check_rows()
            histories = [recorded, *submitted.histories(here, workload, show)]
    progress.clear()
    return histories


def _workers(replays: Replays) -> AbstractContextManager[WorkerProcesses | None]:
    """Worker processes for the replays; None: they are computed in this process."""
    rows, variants, args = replays.rows, replays.variants, replays.args
    is_real = [variant.scheduler is not None for variant in variants]
    count = num_replay_processes(getattr(args, "jobs", None), replays.recording.num_steps, is_real)
    if not count or replays.how != "rescheduled" or not isinstance(rows, RecordedRows) or rows.trace.in_parts:
        return nullcontext()
    try:
        return WorkerProcesses(count, TraceWorker, args, _identity(rows.trace), num_shares=len(variants))
    except NotSendableError:
        return nullcontext()


def _identity(trace: Trace) -> tuple[Any, ...]:
    """Another recording at the same path has another one."""
    return trace.head["created_at"], trace.rows("SELECT count(*) AS steps FROM step")[0]["steps"]


class TraceWorker:
    """The replays of a command in a worker process, which reads trace and options again."""

    def __init__(self, args: argparse.Namespace, identity: tuple[Any, ...]) -> None:
        """TraceError: the trace is another one than before, or cannot be read."""
        from fdtrace.build_replays import Replays
        from fdtrace.recorder.trace.trace import open_trace

        self._stack = ExitStack()
        trace = self._stack.enter_context(open_trace(args.trace))
        if _identity(trace) != identity:
            raise TraceError(f"{args.trace} is another recording by now")
        recording = trace.recording(args.engine)
        rows = RecordedRows(trace, recording.engine.engine_id)
        self.replays = self._stack.enter_context(Replays(recording, args, rows, checked=True))

    def close(self) -> None:
        """Close the trace, and end the processes of engines' schedulers."""
        self._stack.close()


def replayed_variant(worker: TraceWorker, index: int) -> SentHistory:
    """A worker's task: the replay of the variant of this index."""
    replays = worker.replays
    variant = replays.variants[index]
    history = replays.compute(variant, lambda share: report_share(index, share), None)
    return sent_history(history, replays.experiment_of(variant).workload)
