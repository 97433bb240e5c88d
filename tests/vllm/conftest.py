"""Runs an engine with vLLM's surface, recorded by the real command in processes of their own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.stands import Stand


@pytest.fixture
def stand(tmp_path: Path, shared: Path) -> Stand:
    return replace(Stand.at(Path(__file__).parent / "standin" / "engine.py", tmp_path), shared=shared)


def agree(found: list[list[Any]], lines: list[dict[str, Any]]) -> bool:
    """Whether recorded rows are those that the engine wrote; what ran for a request that had ended meanwhile (an
    asynchronous engine runs one step too many) is in both, and its kind is not judged.
    """
    if len(found) != len(lines):
        return False
    for rows, line in zip(found, lines, strict=True):
        gone = {row[0]: row[2] for row in line["rows"] if row[1] is None}
        if any(row[2] != gone[row[0]] for row in rows if row[0] in gone):
            return False
        if [row for row in rows if row[0] not in gone] != sorted(row for row in line["rows"] if row[1]):
            return False
    return True
