"""A real continuous batching engine of transformers' in a process of its own, and recordings of it.

TRANSFORMERS_PYTHON names the Python of an environment that has transformers (`make test-transformers` makes one).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from fdtrace.recorder.trace.trace import Trace
from tests.stands import ROOT, logged

PYTHON = os.environ.get("TRANSFORMERS_PYTHON", "")
LOAD = Path(__file__).parent / "load.py"

FEW_BLOCKS = ("--blocks", "24")
OFFLOAD = ("--offload-gib", "0.01")
PREFIXES = ("--prefixes", "3", "--shared", "48")
FROM_START: list[tuple[str, ...]] = [
    (),
    ("--scheduler", "prefill_first"),
    ("--seqs", "4"),
    (*PREFIXES, "--blocks", "32"),
    FEW_BLOCKS,
    (*FEW_BLOCKS, *OFFLOAD),
    (*FEW_BLOCKS, "--cancel", "0.3"),
    ("--asynchronous",),
    (*FEW_BLOCKS, *OFFLOAD, "--asynchronous"),
]
"""Options of the engines that are recorded from their start to their end."""
FROM_MIDDLE: list[tuple[str, ...]] = [
    FEW_BLOCKS,
    (*PREFIXES, "--blocks", "32"),
    (*FEW_BLOCKS, *OFFLOAD, "--asynchronous"),
]
"""Options of those that are attached to in the middle, again and again."""


@dataclass
class Engine:
    """Where one is recorded: its own log, its trace, and our command's environment."""

    directory: Path

    @property
    def trace(self) -> Path:
        return self.directory / "t.duckdb"

    @property
    def log(self) -> Path:
        return self.directory / "log"

    @property
    def environment(self) -> dict[str, str]:
        boxes = self.directory / "boxes"
        boxes.mkdir(mode=0o700, exist_ok=True)
        kept = {name: value for name, value in os.environ.items() if not name.startswith("FDTRACE")}
        return kept | {"FDTRACE_DIR": str(boxes), "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}

    @property
    def own_environment(self) -> dict[str, str]:
        """The engine's: nothing of fdtrace's is in its path."""
        return {name: value for name, value in self.environment.items() if name != "PYTHONPATH"}

    def command(self, *options: str) -> list[str]:
        """The engine's command line."""
        return [PYTHON, str(LOAD), "--log", str(self.log), *options]

    def fdtrace(self, *arguments: object) -> list[str]:
        """The command line of `fdtrace`."""
        return [sys.executable, "-m", "fdtrace", *map(str, arguments)]

    def record(self, *options: str) -> dict[str, Any]:
        """Record it from its start to its end; what it says of itself. RuntimeError where it fails."""
        command = self.fdtrace("record", "-o", self.trace, "--", *self.command(*options))
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=900, check=False
        )
        if done.returncode:
            raise RuntimeError(done.stdout + done.stderr)
        told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return told

    @contextmanager
    def served(self, *options: str) -> Iterator[subprocess.Popen[str]]:
        """The engine by itself, serving when this begins."""
        with subprocess.Popen(
            self.command(*options), env=self.own_environment, stdin=-1, stdout=-1, stderr=-3, text=True
        ) as process:
            try:
                assert process.stdout is not None
                assert process.stdout.readline().split()[0] == "ready"
                yield process
            finally:
                process.kill()

    def attach(self, pid: int, trace: Path | None = None) -> subprocess.Popen[str]:
        """`fdtrace attach` under way, attached when this returns. RuntimeError where it is not."""
        process = subprocess.Popen(
            self.fdtrace("attach", pid, "-o", trace or self.trace), env=self.environment, stderr=-1, text=True
        )
        assert process.stderr is not None
        said = ""
        while "attached in" not in said:
            line = process.stderr.readline()
            if not line:
                raise RuntimeError(f"fdtrace attach failed: {said}")
            said += line
        return process

    def run_lines(self, count: int) -> None:
        """Wait until it has written so many lines more."""

        def written() -> int:
            return self.log.read_bytes().count(b"\n") if self.log.exists() else 0

        first = written()
        while written() < first + count:
            time.sleep(0.05)

    def lines(self) -> list[dict[str, Any]]:
        """What it wrote itself, a line a batch."""
        return logged(self.log)


def detach(process: subprocess.Popen[str]) -> None:
    """End the recording as Ctrl-C does, and wait for its trace."""
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=300)
    if process.returncode:
        raise RuntimeError(said)


def recorded_lines(trace: Trace) -> list[dict[str, Any]]:
    """Each step as the engine's own log has it: a decode's tokens computed without the one sampled last."""
    rows: dict[int, list[list[Any]]] = {}
    for row in trace.rows("FROM step_request JOIN request USING (engine_id, request)"):
        before = row["num_computed_tokens"] - (row["kind"] == "decode")
        rows.setdefault(row["step"], []).append([row["request_id"], row["num_tokens"], before])
    return [
        {
            "running": step["num_running"],
            "waiting": step["num_waiting"],
            "free": step["num_free_blocks"],
            "rows": sorted(rows.get(step["step"], [])),
        }
        for step in trace.rows("FROM step ORDER BY step")
    ]


_RECORDED: dict[tuple[str, ...], tuple[Engine, dict[str, Any]]] = {}
_ATTACHED: dict[tuple[str, ...], Attached] = {}


def recorded(factory: pytest.TempPathFactory, options: tuple[str, ...]) -> tuple[Engine, dict[str, Any]]:
    """A recording from an engine's start to its end, and what the engine says of itself.

    To start an engine takes longer than to record it, so all tests of a process look at the same recording.
    """
    if options not in _RECORDED:
        engine = Engine(factory.mktemp("engine"))
        _RECORDED[options] = engine, engine.record(*options)
    return _RECORDED[options]


def forget_recordings() -> None:
    """Make each of them again for whoever asks next."""
    _RECORDED.clear()
    _ATTACHED.clear()


@dataclass
class Attached:
    """Recordings of one engine under load. `held`: its descriptors and threads after each. `maps`: its memory in the
    end.
    """

    engine: Engine
    traces: list[Path]
    held: list[tuple[int, int]]
    maps: bytes


def attached(factory: pytest.TempPathFactory, options: tuple[str, ...]) -> Attached:
    """Three recordings of an engine, each begun in the middle. All tests of a process look at the same ones."""
    if options in _ATTACHED:
        return _ATTACHED[options]
    engine = Engine(factory.mktemp("attached"))
    traces, held = [engine.directory / f"{number}.duckdb" for number in range(3)], []
    with engine.served("--requests", "100000", "--seconds", "600", *options) as process:
        server = psutil.Process(process.pid)
        engine.run_lines(50)
        for trace in traces:
            recording = engine.attach(process.pid, trace)
            engine.run_lines(40)
            detach(recording)
            held.append((server.num_fds(), server.num_threads()))
        maps = Path(f"/proc/{process.pid}/maps").read_bytes()
        assert process.poll() is None
    _ATTACHED[options] = Attached(engine, traces, held, maps)
    return _ATTACHED[options]
