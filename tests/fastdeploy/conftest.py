"""Runs the stand-in, recorded by the real command in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from recorder.trace import Trace

ROOT = Path(__file__).parents[2]
STANDIN = Path(__file__).parent / "standin"


@dataclass
class Stand:
    """A place for recordings of the stand-in, and its environment."""

    directory: Path
    environment: dict[str, str]

    @property
    def trace(self) -> Path:
        return self.directory / "t.duckdb"

    @property
    def log(self) -> Path:
        return self.directory / "log"

    def command(self, *options: str) -> list[str]:
        """The stand-in's command line."""
        return [sys.executable, str(STANDIN / "deployment.py"), "--log", str(self.log), *options]

    def fdtrace(self, *arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """Run the command `fdtrace`."""
        command = [sys.executable, "-m", "fdtrace", *arguments]
        return subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=timeout, check=False
        )

    def record(self, *options: str) -> subprocess.CompletedProcess[str]:
        """Record the stand-in from its start to its end."""
        return self.fdtrace("record", "-o", str(self.trace), "--", *self.command(*options))

    def lines(self, dp_rank: int = 0) -> list[dict[str, Any]]:
        """What a worker wrote itself, a line a forward."""
        path = self.log.with_name(f"log.{dp_rank}")
        return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def stand(tmp_path: Path) -> Stand:
    boxes = tmp_path / "boxes"
    boxes.mkdir(mode=0o700)
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("FDTRACE", "STANDIN"))
    }
    environment.update(FDTRACE_DIR=str(boxes), PYTHONPATH=os.pathsep.join([str(STANDIN), str(ROOT)]))
    return Stand(tmp_path, environment)


def rows_of(trace: Trace, engine_id: int = 0) -> list[list[Any]]:
    """For each step its rows, sorted: [request, kind, tokens, computed before, drafts accepted]."""
    steps: dict[int, list[Any]] = {
        row["step"]: [] for row in trace.rows(f"FROM step WHERE engine_id = {engine_id} ORDER BY step")
    }
    for row in trace.rows(
        f"FROM step_request JOIN request USING (engine_id, request) WHERE engine_id = {engine_id}"
    ):
        steps[row["step"]].append(
            [
                row["request_id"],
                row["kind"],
                row["num_tokens"],
                row["num_computed_tokens"],
                row["num_accepted_tokens"],
            ]
        )
    return [sorted(rows) for rows in steps.values()]


def logged_rows(lines: list[dict[str, Any]]) -> list[list[Any]]:
    """The same, from a worker's own lines."""
    return [
        sorted([*row[:4], max(row[4] - 1, 0) if row[1] == "decode" else 0] for row in line["rows"])
        for line in lines
    ]
