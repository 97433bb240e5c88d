"""The replay screen on a trace, complete or in progress, as `fdtrace replay` and `fdtrace attach --tui` open it."""

from __future__ import annotations

import argparse
import threading
import weakref
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fdtrace.recorder.errors import FdtraceError, TraceError

if TYPE_CHECKING:
    from fdtrace.trace_reader import TraceReader
    from fdtrace.tui.app import ReplayApp
    from fdtrace.tui.sources import NewSteps
    from fdtrace.watch import CollectorWatch, StopSignals


def screen_of(reader: TraceReader, args: argparse.Namespace, **options: Any) -> ReplayApp:
    """A screen on a trace, with the replays that the command's arguments ask for.

    Args:
        reader: reads the trace.
        args: parsed arguments, as `fdtrace.build_replays.add_replay_arguments` adds them.
        options: further arguments of `ReplayApp`, such as `terminal` and `step`.
    """
    from fdtrace.build_replays import Replays, sources_of
    from fdtrace.rank_replays import ranks_for_screen
    from fdtrace.tui.app import ReplayApp

    replays = Replays(reader.first, args, reader.rows, reader)
    ranks = ranks_for_screen(reader.all_recordings, args)
    sources = replace(
        sources_of(reader, replays),
        batch_rows=reader.batch_rows,
        ranks=ranks if reader.num_engines > 1 else None,
        opens_ranks=getattr(args, "ranks", False) or bool(getattr(args, "routing", None)),
    )
    screen = ReplayApp(reader.first, replays.panes(), sources=sources, **options)
    weakref.finalize(screen, replays.children.close)
    return screen


def screen_while_recording(
    path: Path, formulas: list[str] | None, watch: CollectorWatch, signals: StopSignals
) -> str:
    """Show a recording in progress until the user leaves the screen; a thread watches the collector meanwhile.

    Returns:
        The reason to end the recording; empty if it has been ended already.

    Raises:
        FdtraceError: the collector failed. The screen has shown it.
    """
    reason = watch.until(lambda: signals.reason or watch.supervisor.ended or _first_steps(path))
    if reason != "first steps":
        return reason
    left = threading.Event()
    failed: list[BaseException] = []

    def record() -> None:
        try:
            end_reason = watch.until(lambda: "interrupt" if left.is_set() else watch.supervisor.ended)
            if end_reason:
                watch.stop(end_reason)
        except BaseException as error:
            failed.append(error)
            watch.fail()  # now, not when the screen closes: it may stay open for a long time

    watch.progress.silent = True
    thread = threading.Thread(target=record, name="fdtrace-recording")
    thread.start()
    try:
        _show(path, formulas, failed)
    except FdtraceError as error:
        watch.progress.note(str(error))
    finally:
        left.set()
        thread.join()
        watch.progress.speak()
    if failed:
        raise failed[0]
    return ""


def _first_steps(path: Path) -> str | None:
    """`first steps` once the trace has a step; None until then."""
    from fdtrace.recorder.trace.trace import open_trace

    if not path.exists():
        return None
    try:
        with open_trace(path) as trace:
            rows = trace.rows("SELECT count(*) AS steps FROM step")
    except TraceError:
        return None  # it is just being published
    return "first steps" if rows[0]["steps"] else None


def _show(path: Path, formulas: list[str] | None, failed: list[BaseException]) -> None:
    """Show the recording until the user leaves the screen. `failed` receives the error if the collector fails."""
    from fdtrace.build_replays import add_replay_arguments
    from fdtrace.replayer.config import is_modelled
    from fdtrace.trace_reader import TraceReader
    from fdtrace.tui.app import run_app

    parser = argparse.ArgumentParser()
    add_replay_arguments(parser)
    options = [word for formula in formulas or () for word in ("-f", formula)]
    reader = TraceReader(path)
    if not is_modelled(reader.first.engine):
        options.append("--as-recorded")
    try:
        screen = screen_of(reader, parser.parse_args([*options, "--", str(path)]))

        def tail(step: int) -> NewSteps:
            if failed:
                raise failed[0]
            return reader.tail(step)

        sources = screen.session.sources
        if sources.tail is not None:
            screen.session.sources = replace(sources, tail=tail)
        run_app(screen)
    finally:
        reader.close()
