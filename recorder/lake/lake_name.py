"""How a lake is written: `ducklake:` and its catalog, as DuckLake itself writes it, and with `?data=` its DATA_PATH.

    ducklake:DIR                                   catalog DIR/catalog.sqlite, data DIR/data: one machine
    ducklake:sqlite:FILE?data=PATH                 the same, each where one wants it
    ducklake:postgres:dbname=fleet host=db?data=s3://bucket/path      many machines

One trace of a lake is `LAKE/TRACE_ID`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fdtrace.recorder.errors import UsageError

SCHEME = "ducklake:"
DATA = "?data="
TRACE_ID = re.compile(r"\d{8}T\d{6}-[0-9a-f]{1,16}")
"""A trace's id, or its beginning: when its recording began, UTC, and a digest."""
_SECRET = re.compile(r"(?i)(?:^|[\s?&])(?:ssl)?password\s*=|://[^/@]*:[^/@]*@")
_REMOTE = re.compile(r"[a-z][a-z0-9+.-]*://")
EXAMPLE = "such as ducklake:DIR, or 'ducklake:postgres:dbname=fleet host=db?data=s3://bucket/path'"


@dataclass(frozen=True)
class LakeName:
    """A lake: its catalog's kind and connection, and where its Parquet files are (None: as the catalog says).

    It holds no password: those come from the environment alone.
    """

    catalog: Literal["sqlite", "postgres"]
    connection: str
    data: str | None

    @property
    def attachment(self) -> str:
        """What DuckDB attaches."""
        return f"{SCHEME}{self.catalog}:{self.connection}"

    def __str__(self) -> str:
        return self.attachment + (f"{DATA}{self.data}" if self.data else "")


@dataclass(frozen=True)
class LakeTraceName:
    """`LAKE/TRACE_ID`; or `LAKE` alone: then `trace_id` is None."""

    lake: LakeName
    trace_id: str | None

    def __str__(self) -> str:
        return str(self.lake) + (f"/{self.trace_id}" if self.trace_id else "")


def is_lake(text: str) -> bool:
    """Whether a text names a lake, or a trace of one."""
    return text.startswith(SCHEME)


def parse_lake(text: str) -> LakeName:
    """The lake that a text names.

    Raises:
        UsageError: it names no lake, or it holds a password.
    """
    if not is_lake(text):
        raise UsageError(f"{text} is no lake", why=f"its name begins with {SCHEME}", hint=EXAMPLE)
    place, _, data = text.removeprefix(SCHEME).partition(DATA)
    if _SECRET.search(place) or _SECRET.search(data):
        raise UsageError(
            "a password is no part of a lake's name",
            why="whoever lists this machine's processes would read it",
            hint="PostgreSQL: PGPASSWORD or ~/.pgpass; S3: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        )
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{text} is no lake", why="its name is no UTF-8") from None
    if not place or "\0" in text:
        raise UsageError(f"{text} is no lake", why="it names no catalog", hint=EXAMPLE)
    if place.startswith("postgres:"):
        return LakeName("postgres", place.removeprefix("postgres:"), _data_path(data))
    if place.startswith("sqlite:"):
        catalog = Path(place.removeprefix("sqlite:")).absolute()
        return LakeName("sqlite", str(catalog), _data_path(data))
    if data:
        hint = f"{SCHEME}sqlite:{place}/catalog.sqlite{DATA}{data}"
        raise UsageError(
            f"{text} says twice where its data is", why=f"that of a directory is {place}/data", hint=hint
        )
    directory = Path(place).absolute()
    return LakeName("sqlite", str(directory / "catalog.sqlite"), f"{directory / 'data'}/")


def parse_lake_trace(text: str) -> LakeTraceName:
    """The trace of a lake that a text names, or the lake alone. Raises: as `parse_lake`."""
    lake, slash, last = text.rpartition("/")
    if slash and is_lake(lake) and TRACE_ID.fullmatch(last):
        return LakeTraceName(parse_lake(lake), last)
    return LakeTraceName(parse_lake(text), None)


def _data_path(text: str) -> str | None:
    if not text:
        return None
    path = text if _REMOTE.match(text) else str(Path(text).absolute())
    return path if path.endswith("/") else path + "/"
