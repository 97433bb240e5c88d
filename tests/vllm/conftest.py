"""Runs an engine with vLLM's surface, recorded by the real command in processes of their own."""

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
        return [sys.executable, str(STANDIN / "engine.py"), "--log", str(self.log), *options]

    def fdtrace(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        """Run the command `fdtrace`."""
        command = [sys.executable, "-m", "fdtrace", *map(str, arguments)]
        return subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=120, check=False
        )

    def record(self, *options: str) -> subprocess.CompletedProcess[str]:
        """Record the stand-in from its start to its end."""
        return self.fdtrace("record", "-o", self.trace, "--", *self.command(*options))

    def lines(self) -> list[dict[str, Any]]:
        """What the engine wrote itself, a line a forward."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]


@pytest.fixture
def stand(tmp_path: Path) -> Stand:
    boxes = tmp_path / "boxes"
    boxes.mkdir(mode=0o700)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FDTRACE")}
    environment.update(FDTRACE_DIR=str(boxes), PYTHONPATH=os.pathsep.join([str(STANDIN), str(ROOT)]))
    return Stand(tmp_path, environment)


def rows_of(trace: Trace) -> list[list[Any]]:
    """For each step its rows, sorted: [request, kind, tokens, computed before, drafts accepted]."""
    steps: dict[int, list[Any]] = {row["step"]: [] for row in trace.rows("FROM step ORDER BY step")}
    for row in trace.rows("FROM step_request JOIN request USING (engine_id, request)"):
        columns = ("request_id", "kind", "num_tokens", "num_computed_tokens", "num_accepted_tokens")
        steps[row["step"]].append([row[name] for name in columns])
    return [sorted(rows) for rows in steps.values()]


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
