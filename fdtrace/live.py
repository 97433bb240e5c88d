"""The replay screen on a recording in progress, as `fdtrace attach --tui` opens it."""

from __future__ import annotations

import argparse
from pathlib import Path

from recorder.errors import TraceError


def first_steps(path: Path) -> str | None:
    """A reason to go on to the screen once the trace holds a step; None until then."""
    from recorder.trace import open_trace

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
    from fdtrace.formulas import formulas
    from fdtrace.reading import TraceReader
    from fdtrace.replays import replays_later, sources_of
    from tui.app import run_replay

    args = argparse.Namespace(formula=formulas_given, as_recorded=False, policy=None)
    reader = TraceReader(path)
    try:
        later = replays_later(reader, formulas(formulas_given), args)
        run_replay(reader.first, later, sources=sources_of(reader, args))
    finally:
        reader.close()
