"""Exports a recording, and replays beside it, as a timeline of Perfetto or Chrome."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from fdtrace.recorder.trace.column_values import MISSING

if TYPE_CHECKING:
    from fdtrace.recorder.trace.trace import Trace
    from fdtrace.timeline.timeline_file import TimelineFile
    from fdtrace.timeline.timeline_run import TimelineRun

NS_A_MS = 1_000_000


def export_timeline(args: argparse.Namespace) -> None:
    """Write the file.

    Raises:
        UsageError: an option makes no sense, or a package is missing.
        TraceError: the trace cannot be read.
    """
    from fdtrace.recorder.trace.trace import open_trace, reading
    from fdtrace.timeline.draw_run import draw_run
    from fdtrace.timeline.recorded_run import recorded_run
    from fdtrace.whole_file import whole_file

    with open_trace(args.trace) as trace:
        recorded, has_clock = recorded_run(trace, args.engine, round(args.step_ms * NS_A_MS))
        runs = [recorded, *_replayed(trace, args, recorded)]
        begin = min(map(_begin_of, runs))
        with (
            whole_file(args.output, force=args.force) as half,
            _opened(args.to, half, begin, has_clock) as file,
        ):
            for run in runs:
                with reading(args.trace):
                    draw_run(file, run, each_decode=args.each_decode)
            file.close()
    size = args.output.stat().st_size / 2**20
    names = ", ".join(run.name for run in runs)
    sys.stderr.write(
        f"fdtrace: {names}: {len(recorded.numbers):,} recorded steps, {size:.1f} MiB in {args.output}\n"
    )
    if args.to == "perfetto":
        sys.stderr.write("fdtrace: open it at https://ui.perfetto.dev (it stays in your browser)\n")


def _begin_of(run: TimelineRun) -> int:
    arrived = run.requests.arrived_ns
    return int(min(run.begin_ns[0], arrived[arrived != MISSING].min(initial=run.begin_ns[0])))


def _replayed(trace: Trace, args: argparse.Namespace, recorded: TimelineRun) -> Iterator[TimelineRun]:
    """The replays that the command line asks for."""
    from fdtrace.build_replays import Replays
    from fdtrace.compute_replays import compute_replays
    from fdtrace.recorded_rows import RecordedRows
    from fdtrace.timeline.replayed_run import replayed_run

    if not (args.formula or args.variant or args.scheduler):
        return
    recording = trace.recording(args.engine)
    rows = RecordedRows(trace, recording.engine.engine_id)
    with Replays(recording, args, rows) as replays:
        for history in compute_replays(replays)[1:]:
            yield replayed_run(history, recorded)


@contextmanager
def _opened(to: str, path: Path, begin_ns: int, has_clock: bool) -> Iterator[TimelineFile]:
    if to == "perfetto":
        from fdtrace.timeline.perfetto_file import PerfettoFile

        with open(path, "wb") as file:
            yield PerfettoFile(file, begin_ns, has_clock=has_clock)
    else:
        from fdtrace.timeline.chrome_file import ChromeFile

        with open(path, "w", encoding="utf-8") as text:
            yield ChromeFile(text, begin_ns)
