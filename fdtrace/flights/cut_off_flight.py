"""Closes a flight whose collector is gone: what its ring holds is kept as one more trace, and the ring is removed."""

from __future__ import annotations

import os

import duckdb

from fdtrace.progress import Progress
from fdtrace.recorder import attach_server
from fdtrace.recorder.collector.saved_state import check_parts
from fdtrace.recorder.errors import FdtraceError, TraceError
from fdtrace.recorder.flight.finish_keep import finish_keep
from fdtrace.recorder.flight.flight_collector import recover_flight
from fdtrace.recorder.flight.flight_directory import FlightDirectory
from fdtrace.recorder.leftovers import is_collected
from fdtrace.recorder.session import Session


def is_flight(directory: FlightDirectory) -> bool:
    """Whether something of a flight is left to close in a directory."""
    return os.path.lexists(directory.parts) or bool(directory.spools)


def close_flight(directory: FlightDirectory, progress: Progress) -> list[str]:
    """Close what was cut off there, and finish the kept traces that are not finished. Returns the names of new traces.

    Raises:
        TraceError: a flight is being recorded there, or what it left is damaged; nothing is removed then.
    """
    if os.path.lexists(directory.parts) and is_collected(directory.parts):
        raise TraceError(
            f"a flight is being recorded to {directory.path}",
            why=f"a collector holds the lock of {directory.parts}",
            hint="`fdtrace status` shows it; `fdtrace detach PID` ends it",
        )
    os.umask(os.umask(0o077) | 0o077)  # nobody else may read what was recorded
    kept = []
    if os.path.lexists(directory.parts):
        kept += _cut_off(directory, progress)
    for spool in directory.spools:
        try:
            check_parts(spool, also=SPOOL_NAMES)
            finished = finish_keep(spool)
        except (OSError, duckdb.Error) as error:
            raise TraceError(
                f"{spool} cannot be made a trace",
                why=str(error).splitlines()[0],
                hint="make room, and try again",
            ) from None
        if finished is not None:
            kept.append(finished.name)
    return kept


SPOOL_NAMES = frozenset({"state.duckdb", "keep.json", "lock"})


def _cut_off(directory: FlightDirectory, progress: Progress) -> list[str]:
    check_parts(directory.parts)
    session = Session.load(directory.parts / "session.json")

    def stop_agents() -> None:
        for note in attach_server.detach(session.id, "recover"):
            progress.note(note)

    try:
        return recover_flight(session, stop_agents)
    except FdtraceError:
        raise
    except (OSError, duckdb.Error) as error:
        raise TraceError(
            f"the flight in {directory.path} cannot be closed",
            why=str(error).splitlines()[0],
            hint=f"make room or fix that, then `fdtrace recover {directory.path}`",
        ) from None
