"""Files of results, which `fdtrace sweep -o` writes: opened as safely as a trace, for queries alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb

from fdtrace.recorder.errors import StuckQueryError, TraceError
from fdtrace.recorder.trace.file import attached, damaged, refuse_other_files
from fdtrace.recorder.trace.shape import FILE, file_tables
from fdtrace.recorder.trace.trace import Trace, open_trace

RESULT_TABLE = "sweep"


@contextmanager
def open_for_queries(
    path: Path, *, memory: int | None = None, writable: Path | None = None
) -> Iterator[Trace]:
    """A trace, or a file of results, open within the `with` block.

    Args, Raises: as for `open_trace`.
    """
    refuse_other_files(path)
    db = attached(path, memory, writable, ())
    try:
        tables = file_tables(db)
        is_result = RESULT_TABLE in tables.columns and "trace" not in tables.columns
        if is_result and RESULT_TABLE in tables.computing:
            db.close()
            raise TraceError(f"{path} is no file of results", why=f"{RESULT_TABLE} has a computed column")
        if is_result:
            db.execute(f"CREATE VIEW {RESULT_TABLE} AS FROM {FILE}.main.{RESULT_TABLE}")
    except duckdb.Error as error:
        db.close()
        raise damaged(path, error) from None
    if not is_result:
        db.close()
        with open_trace(path, memory=memory, writable=writable) as trace:
            yield trace
        return
    result = Trace(path, db, makes_views=False)
    try:
        yield result
    except StuckQueryError:
        raise  # closing would wait for the query
    except BaseException:
        result.close()
        raise
    else:
        result.close()
