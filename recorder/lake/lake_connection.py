"""Opens a lake. DuckDB's extensions come from Python packages (extra `fleet`): nothing is downloaded or installed.

Passwords and keys come from the environment (PGPASSWORD, ~/.pgpass, AWS_…) or from DuckDB's own secrets.
"""

from __future__ import annotations

import importlib.util
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import duckdb

from fdtrace.recorder.lake.lake_errors import LakeError, lake_failed
from fdtrace.recorder.lake.lake_name import LakeName
from fdtrace.recorder.sql_text import quoted
from fdtrace.recorder.trace.file import MEMORY_SHARE, SETTINGS, machine_memory

LAKE = "lake"
"""The name under which a connection attaches the lake."""
CATALOG = f"__ducklake_metadata_{LAKE}"
"""The name under which DuckLake attaches its catalog."""
EXTENSIONS = {"sqlite": ("ducklake", "sqlite_scanner"), "postgres": ("ducklake", "postgres_scanner")}
OBJECT_STORE = "s3://"
INSTALL = "python -m pip install 'fdtrace[fleet]'"

_OWN_SETTINGS = {key: value for key, value in SETTINGS.items() if key != "allow_persistent_secrets"}
_ATTACHED = "SELECT value FROM {}.ducklake_metadata WHERE key = 'data_path'"


@contextmanager
def open_lake(
    lake: LakeName, *, create: bool = False, read_only: bool = True, memory: int | None = None
) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection to a lake, attached as `LAKE`, within the `with` block.

    Args:
        lake: the lake.
        create: make it if it is not there. Whoever does so holds `lake_lock`.
        read_only: nothing can be written to it.
        memory: bytes that queries may use; None: half of the machine's.

    Raises:
        LakeError: the extra `fleet` is missing, or the lake is not there or cannot be reached.
    """
    bytes_allowed = memory or int(machine_memory() * MEMORY_SHARE)
    paths = [extension_path(name) for name in EXTENSIONS[lake.catalog]]
    db = duckdb.connect(":memory:", config={**_OWN_SETTINGS, "memory_limit": f"{bytes_allowed // 1000}KB"})
    try:
        for path in paths:
            db.execute(f"LOAD '{quoted(path)}'")
        _attach(db, lake, create=create, read_only=read_only)
        yield db
    finally:
        close_quietly(db)


def close_quietly(db: duckdb.DuckDBPyConnection) -> None:
    """Close a connection whose PostgreSQL may be gone. To close it within a transaction would then abort the process:
    DuckDB's extension throws where nobody catches.
    """
    for end in (db.rollback, db.close):
        with suppress(duckdb.Error):
            end()


def extension_path(name: str) -> Path:
    """The file of a DuckDB extension that a Python package brought. LakeError if there is none for this DuckDB."""
    found = importlib.util.find_spec(f"duckdb_extension_{name}")
    if found is None or not found.submodule_search_locations:
        raise LakeError(
            "a lake needs DuckDB's extensions",
            why=f"the package duckdb-extension-{name} is not installed",
            hint=INSTALL,
        )
    folder = Path(next(iter(found.submodule_search_locations))) / "extensions"
    path = folder / f"v{duckdb.__version__}" / f"{name}.duckdb_extension"
    if not path.is_file():
        others = ", ".join(sorted(entry.name for entry in folder.glob("v*"))) or "no DuckDB"
        raise LakeError(
            "a lake needs DuckDB's extensions",
            why=f"duckdb-extension-{name} is made for {others}, but DuckDB {duckdb.__version__} is installed",
            hint=INSTALL,
        )
    return path


def check_extensions(lake: LakeName) -> None:
    """LakeError if what this lake needs is not installed."""
    names = EXTENSIONS[lake.catalog] + (("httpfs",) if (lake.data or "").startswith(OBJECT_STORE) else ())
    for name in names:
        extension_path(name)


def data_path(db: duckdb.DuckDBPyConnection) -> str:
    """Where the files of the attached lake are."""
    return str(db.execute(_ATTACHED.format(CATALOG)).fetchall()[0][0])


def _attach(db: duckdb.DuckDBPyConnection, lake: LakeName, *, create: bool, read_only: bool) -> None:
    if lake.catalog == "sqlite":
        _prepare_sqlite(lake, create=create)
    if (lake.data or OBJECT_STORE).startswith(
        OBJECT_STORE
    ):  # without a path, it may be a bucket: the catalog says
        _prepare_bucket(db, lake.data or OBJECT_STORE)
    options = ["DATA_INLINING_ROW_LIMIT 0", f"CREATE_IF_NOT_EXISTS {str(create).lower()}"]
    options += [f"DATA_PATH '{quoted(lake.data)}'"] if lake.data is not None else []
    options += ["READ_ONLY"] if read_only else []
    try:
        db.execute(f"ATTACH '{quoted(lake.attachment)}' AS {LAKE} ({', '.join(options)})")
    except duckdb.Error as error:
        hint = "`fdtrace push` makes a lake; see docs/fleet.md for what each catalog needs"
        raise lake_failed(lake, "cannot be opened", error, hint=hint) from None


def _prepare_sqlite(lake: LakeName, *, create: bool) -> None:
    """Let readers of the catalog go on while a push commits: SQLite's write-ahead log, which stays set in the file."""
    path = Path(lake.connection)
    if not path.exists():
        if not create:
            raise LakeError(
                f"there is no lake {lake}", why=f"there is no {path}", hint="`fdtrace push` makes one"
            )
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LakeError(f"{lake} cannot be made", why=str(error)) from None
    if create:
        try:
            with sqlite3.connect(path) as catalog:
                catalog.execute("PRAGMA journal_mode = WAL")
            catalog.close()
        except sqlite3.Error as error:
            raise LakeError(f"{lake} cannot be opened", why=f"{path}: {error}") from None


def _prepare_bucket(db: duckdb.DuckDBPyConnection, data: str) -> None:
    """Load what a bucket needs, and take its keys from the environment where DuckDB has no secret for it.

    What is made here is for any bucket. A secret of DuckDB's for a narrower place goes before it.
    """
    db.execute(f"LOAD '{quoted(extension_path('httpfs'))}'")
    if db.execute("FROM which_secret($1, 's3')", [data]).fetchall():
        return
    keys = {
        "KEY_ID": os.environ.get("AWS_ACCESS_KEY_ID"),
        "SECRET": os.environ.get("AWS_SECRET_ACCESS_KEY"),
        "SESSION_TOKEN": os.environ.get("AWS_SESSION_TOKEN"),
        "REGION": os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"),
        **_endpoint(os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")),
    }
    given = ", ".join(f"{name} '{quoted(value)}'" for name, value in keys.items() if value)
    try:
        db.execute(f"CREATE SECRET fdtrace_bucket (TYPE s3{', ' if given else ''}{given})")
    except duckdb.Error:  # its text would quote the statement, with the key
        raise LakeError("DuckDB does not take the keys of AWS_ACCESS_KEY_ID and the like") from None


def _endpoint(url: str | None) -> dict[str, str | None]:
    if not url:
        return {}
    parts = urlsplit(url)
    secure = "false" if parts.scheme == "http" else "true"
    return {"ENDPOINT": parts.netloc + parts.path.rstrip("/"), "URL_STYLE": "path", "USE_SSL": secure}
