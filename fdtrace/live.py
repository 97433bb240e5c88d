"""The replay screen on a recording in progress, as `fdtrace attach --tui` opens it."""

from __future__ import annotations

import argparse
from pathlib import Path

from fdtrace.recorder.errors import TraceError


def first_steps(path: Path) -> str | None:
    """A reason to go on to the screen once the trace holds a step; None until then."""
    from fdtrace.recorder.trace import open_trace

    if not path.exists():
        return None
    try:
        with open_trace(path) as trace:
            found = trace.rows("SELECT count(*) AS steps FROM step")
    except TraceError:
        return None  # it is being published
    return "first steps" if found[0]["steps"] else None


def show(path: Path, formulas_given: list[str] | None) -> None:
    """Show the recording until the screen is left."""
    from fdtrace.reading import TraceReader
    from fdtrace.replayer.config import is_modelled
    from fdtrace.replays import Replays, add_replay_arguments, sources_of
    from fdtrace.tui.app import run_replay

    parser = argparse.ArgumentParser()
    add_replay_arguments(parser)
    asked = [part for text in formulas_given or () for part in ("-f", text)]
    reader = TraceReader(path)
    if not is_modelled(reader.first.engine):
        asked.append("--as-recorded")
    try:
        replays = Replays(reader.first, parser.parse_args([*asked, "--", str(path)]), reader.rows, reader)
        run_replay(reader.first, replays.later(), sources=sources_of(reader, replays))
    finally:
        reader.close()
