"""Recordings of which only sums are known: they were imported from metrics of forwards (`fdtrace import`)."""

from __future__ import annotations

from fdtrace.recorder.errors import UsageError
from fdtrace.recorder.trace.recording import Recording

IMPORTED = "imported"
"""The key of an engine's configuration that says what it was imported from."""


def refuse_only_sums(recording: Recording) -> None:
    """UsageError if the recording holds no requests and no state of a scheduler, from which a replay could be made."""
    source = recording.engine.config.get(IMPORTED)
    if source:
        raise UsageError(
            "this trace cannot be replayed",
            why=f"it was imported from {source!s:.100}: sums of forwards say neither which requests there were nor "
            "what a scheduling call saw",
            hint="fdtrace info, fdtrace sql and fdtrace export --to perfetto take it",
        )
