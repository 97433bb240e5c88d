"""Errors of a lake, for its users."""

from __future__ import annotations

import duckdb

from fdtrace.recorder.errors import FdtraceError
from fdtrace.recorder.trace.file import first_line

_CONFLICTS = ("conflict", "database is locked", "could not serialize", "deadlock detected", "duplicate key")
"""In an error's text: another one wrote at the same moment."""


class LakeError(FdtraceError):
    """A lake cannot be reached, read or written."""


def is_conflict(error: duckdb.Error) -> bool:
    """Whether the same may succeed when it is tried again: others write to the same lake."""
    text = str(error).lower()
    return any(sign in text for sign in _CONFLICTS)


def lake_failed(lake: object, doing: str, error: BaseException, *, hint: str) -> LakeError:
    """The error for what DuckDB could not do with a lake."""
    return LakeError(f"{lake} {doing}", why=first_line(error), hint=hint)
