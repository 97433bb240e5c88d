"""Quotes text for SQL. DuckDB takes no parameter in ATTACH, COPY, COMMENT and views: their text names files itself."""

from __future__ import annotations

from pathlib import Path


def quoted(text: Path | str) -> str:
    """`text` as it must be written between single quotes in SQL."""
    return str(text).replace("'", "''")
