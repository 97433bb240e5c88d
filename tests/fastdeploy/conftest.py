"""Runs the stand-in, recorded by the real command in processes of their own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests import stands


class Stand(stands.Stand):
    """FastDeploy's stand-in has a log for each data-parallel rank."""

    def lines(self, dp_rank: int = 0) -> list[dict[str, Any]]:
        """What a worker of rank 0 wrote itself, a line a forward."""
        return stands.logged(self.log_of(dp_rank))

    def log_of(self, dp_rank: int = 0) -> Path:
        """Where that worker writes."""
        return self.log.with_name(f"log.{dp_rank}")


@pytest.fixture
def stand(tmp_path: Path, shared: Path) -> Stand:
    return replace(Stand.at(Path(__file__).parent / "standin" / "deployment.py", tmp_path), shared=shared)


def logged_rows(lines: list[dict[str, Any]]) -> list[list[Any]]:
    """As `rows_of`, from a worker's own lines."""
    return [
        sorted([*row[:4], max(row[4] - 1, 0) if row[1] == "decode" else 0] for row in line["rows"])
        for line in lines
    ]
