"""What SQL text needs where DuckDB takes no parameter: ATTACH, COPY, COMMENT and views name their files and texts."""

from __future__ import annotations

from pathlib import Path


def quoted(text: Path | str) -> str:
    """`text` as it stands between single quotes of SQL."""
    return str(text).replace("'", "''")
