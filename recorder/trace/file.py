"""Opens a trace's file safely. A trace may come from a stranger: nothing in it may harm whoever opens it.

The file is attached, read-only, to a DuckDB of our own in memory. Only the file's tables are read. The tables and views
that queries see are ours, made from `recorder.schema`. So no view and no macro of the file ever runs, and none can
replace a name that our queries use.

The connection limits what a user's query can reach: this file (and the parts of a recording in progress), no other
file, no network, no extension, no setting, and a limited amount of memory.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path

import duckdb

from fdtrace.recorder import schema
from fdtrace.recorder.errors import TraceError
from fdtrace.recorder.sql_text import quoted
from fdtrace.recorder.trace.parts import STATE, find_parts, part_sources
from fdtrace.recorder.trace.shape import FILE, check_head, file_tables, table_sources
from fdtrace.recorder.trace_paths import parts_directory

MAGIC_OFFSET, MAGIC = 8, b"DUCK"
HEADERS = 3 * 4096
"""Bytes of a DuckDB file before its first block."""

MOST_TRIES = 20
"""How often a recording in progress is opened again because it was replaced meanwhile."""

MEMORY_SHARE = 0.5
"""The share of the machine's memory that the queries of one trace may use, where the caller sets no limit."""

SETTINGS = {
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "allow_community_extensions": "false",
    "allow_persistent_secrets": "false",
    "python_enable_replacements": "false",  # else a name in a query may be a variable of ours
    "temp_directory": "",  # nothing is written
}
NO_PROGRESS = "SET enable_progress_bar = false"
"""DuckDB draws a bar on a terminal during statements of more than two seconds."""


def machine_memory() -> int:
    """Bytes of memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def connect(
    path: Path, *, memory: int | None = None, writable: Path | None = None
) -> duckdb.DuckDBPyConnection:
    """A connection in which the schema's tables are those of the trace at `path`. `add_schema_views` adds its views.

    Args:
        path: the trace.
        memory: bytes that queries may use; None: half of the machine's.
        writable: a directory that `COPY … TO` may write to.

    Raises:
        TraceError: the file is no trace, is damaged, or has other tables than the schema; the error says which and why.
    """
    refuse_other_files(path)
    db = attached(path, memory, writable, ())
    try:
        tables = file_tables(db)
        earlier = check_head(db, path, tables) < schema.SCHEMA_VERSION
        parts = find_parts(db, path, tables)
        for _ in range(MOST_TRIES):
            if parts is None:
                break
            db.close()
            db = attached(path, memory, writable, parts.files)
            tables, allowed = file_tables(db), parts
            parts = find_parts(db, path, tables)
            if parts == allowed:
                break  # else the recording has published its next state in between: its parts are others
        else:
            raise TraceError(
                f"{path} cannot be read now",
                why="its recording replaces it again and again",
                hint="try again",
            )
        sources = {} if parts is None else part_sources(db, path, tables, parts, earlier=earlier)
        sources |= table_sources(path, tables, sources, earlier=earlier)
        _define_tables(db, sources, growing=parts is not None)
    except duckdb.Error as error:
        db.close()
        raise damaged(path, error) from None
    except BaseException:
        db.close()
        raise
    return db


def is_growing(db: duckdb.DuckDBPyConnection) -> bool:
    """Whether the rows of an open trace are still in parts: a final file will replace this one."""
    rows = db.execute(
        "SELECT count(*) FROM duckdb_views() WHERE view_name = $1 AND database_name = 'memory'", [STATE]
    )
    return bool(rows.fetchall()[0][0])


def refuse_other_files(path: Path) -> None:
    """Raise a TraceError unless `path` is a regular file that begins as a DuckDB database does."""
    try:
        str(path.resolve()).encode()
        status = path.stat()
    except UnicodeEncodeError:
        raise TraceError(f"{path} cannot be opened", why="its name is no UTF-8", hint="rename it") from None
    except FileNotFoundError:
        raise _missing(path) from None
    except (OSError, ValueError) as error:
        raise TraceError(f"{path} cannot be read", why=str(error)) from None
    if stat.S_ISDIR(status.st_mode):
        raise TraceError(f"{path} is a directory", hint="give the trace's file")
    if not stat.S_ISREG(status.st_mode):
        raise TraceError(f"{path} is no trace", why="it is no regular file: a pipe, a device or a socket")
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(fd, "rb") as file:
            head = file.read(64)
    except OSError as error:
        raise TraceError(f"{path} cannot be read", why=error.strerror or str(error)) from None
    if not head:
        raise TraceError(f"{path} is no trace", why="it is empty", hint="copy it again")
    if head[MAGIC_OFFSET : MAGIC_OFFSET + len(MAGIC)] != MAGIC:
        raise TraceError(f"{path} is no trace", why="it is not a DuckDB file")
    if status.st_size < HEADERS:
        why = f"it was cut off: {status.st_size} bytes are left of it"
        raise TraceError(f"{path} is damaged", why=why, hint=AGAIN)
    log = path.with_name(path.name + ".wal")
    if os.path.lexists(log):
        raise TraceError(
            f"{path} cannot be opened",
            why=f"{log.name} lies beside it: a DuckDB client made changes and did not end, or somebody put it there",
            hint=f"if you changed the trace yourself, `CHECKPOINT` it with DuckDB; else remove {log.name}",
        )


AGAIN = "copy it again, or `fdtrace recover` it where it was recorded"


def damaged(path: Path, error: BaseException) -> TraceError:
    """The error for a trace that DuckDB cannot read, or whose values Python cannot take."""
    if isinstance(error, duckdb.OutOfMemoryException):
        return TraceError(
            f"{path} needs more memory than may be used",
            why=first_line(error),
            hint="`fdtrace sql --memory` sets how much a query may use",
        )
    return TraceError(f"{path} is damaged", why=first_line(error), hint=AGAIN)


def first_line(error: BaseException) -> str:
    """The first line of an error's message."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def _missing(path: Path) -> TraceError:
    if parts_directory(path).is_dir():
        return TraceError(
            f"{path} is not there, but its parts are",
            why="its recording was cut off",
            hint=f"fdtrace recover {path}",
        )
    return TraceError(
        f"there is no file {path}", hint="`fdtrace record` and `fdtrace attach` make one with -o"
    )


def attached(
    path: Path, memory: int | None, writable: Path | None, files: Sequence[Path]
) -> duckdb.DuckDBPyConnection:
    """A database in memory with the trace attached as `FILE`. It can read the trace and `files`, and nothing else."""
    trace_path = path.resolve()
    bytes_allowed = memory or int(machine_memory() * MEMORY_SHARE)
    db = duckdb.connect(":memory:", config={**SETTINGS, "memory_limit": f"{bytes_allowed // 1000}KB"})
    try:
        allowed = [trace_path, trace_path.with_name(trace_path.name + ".wal"), *files]
        db.execute(
            f"SET allowed_paths = [{', '.join(f'{chr(39)}{quoted(entry)}{chr(39)}' for entry in allowed)}]"
        )
        if writable is not None:
            db.execute(f"SET allowed_directories = ['{quoted(writable)}/']")
        with contextlib.suppress(
            duckdb.InvalidInputException
        ):  # in Jupyter without ipywidgets there is no bar
            db.execute(NO_PROGRESS)
        db.execute("SET enable_external_access = false")
        db.execute("SET lock_configuration = true")
        db.execute(f"ATTACH '{quoted(trace_path)}' AS {FILE} (READ_ONLY, TYPE duckdb)")
    except duckdb.Error as error:
        db.close()
        raise TraceError(
            f"{path} cannot be opened",
            why=first_line(error),
            hint=f"if its recording was cut off: fdtrace recover {path}; a truncated copy has to be copied again",
        ) from None
    return db


def add_schema_views(db: duckdb.DuckDBPyConnection) -> None:
    """Create the schema's views over its tables. DuckDB binds each of them, which takes half as long as all else."""
    db.execute("; ".join(f"CREATE VIEW {view.name} AS {view.query}" for view in schema.VIEWS))


def _define_tables(db: duckdb.DuckDBPyConnection, sources: Mapping[str, str], *, growing: bool) -> None:
    """Create the schema's tables, as views of the file's tables.

    While the trace grows, its collector's state can be read too.
    """
    statements = [f"CREATE VIEW {table.name} AS {sources[table.name]}" for table in schema.TABLES]
    if growing:
        statements.append(f"CREATE VIEW {STATE} AS FROM {FILE}.main.{STATE}")
    db.execute("; ".join(statements))
