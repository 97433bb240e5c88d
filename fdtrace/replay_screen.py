"""The replay screen on a trace, complete or in progress, as `fdtrace replay` and `fdtrace attach --tui` open it."""

from __future__ import annotations

import argparse
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fdtrace.recorder.errors import FdtraceError, TraceError

if TYPE_CHECKING:
    from fdtrace.reading import TraceReader
    from fdtrace.tui.app import ReplayApp
    from fdtrace.tui.sources import NewSteps
    from fdtrace.watch import StopSignals, Watch


def screen_of(reader: TraceReader, args: argparse.Namespace, **options: Any) -> ReplayApp:
    """The screen on a trace with the replays that `args` ask for (`fdtrace.replays.add_replay_arguments`).

    `options` are those of `ReplayApp`: `terminal`, `step`.
    """
    from fdtrace.replays import Replays, sources_of
    from fdtrace.tui.app import ReplayApp

    replays = Replays(reader.first, args, reader.rows, reader)
    return ReplayApp(reader.first, replays.later(), sources=sources_of(reader, replays), **options)


def on_screen(path: Path, formulas: list[str] | None, watch: Watch, signals: StopSignals) -> str:
    """Watch the collector in a thread, and show what it records until the screen is left; the reason to end.

    Empty: the recording was told to end already. FdtraceError where the collector failed meanwhile: the screen said so.
    """
    reason = watch.until(lambda: signals.reason or watch.supervisor.ended or _first_steps(path))
    if reason != "first steps":
        return reason
    left = threading.Event()
    failed: list[BaseException] = []

    def record() -> None:
        try:
            ended = watch.until(lambda: "interrupt" if left.is_set() else watch.supervisor.ended)
            if ended:
                watch.stop(ended)
        except BaseException as error:
            failed.append(error)
            watch.fail()  # at once: the screen may stay open for long

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
    """A reason to go on to the screen once the trace holds a step; None until then."""
    from fdtrace.recorder.trace.trace import open_trace

    if not path.exists():
        return None
    try:
        with open_trace(path) as trace:
            found = trace.rows("SELECT count(*) AS steps FROM step")
    except TraceError:
        return None  # it is being published
    return "first steps" if found[0]["steps"] else None


def _show(path: Path, formulas: list[str] | None, failed: list[BaseException]) -> None:
    """Show the recording until the screen is left; `failed` gets what its collector failed with."""
    from fdtrace.reading import TraceReader
    from fdtrace.replayer.config import is_modelled
    from fdtrace.replays import add_replay_arguments
    from fdtrace.tui.app import run_app

    parser = argparse.ArgumentParser()
    add_replay_arguments(parser)
    asked = [part for text in formulas or () for part in ("-f", text)]
    reader = TraceReader(path)
    if not is_modelled(reader.first.engine):
        asked.append("--as-recorded")
    try:
        screen = screen_of(reader, parser.parse_args([*asked, "--", str(path)]))

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
