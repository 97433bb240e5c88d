"""The engine that the GPU check records: transformers' continuous batching on a random model, and its own figures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import psutil

ROOT = Path(__file__).resolve().parents[2]
LOAD = ROOT / "tests" / "transformers_cb" / "load.py"
ENGINE = os.environ.get("TRANSFORMERS_PYTHON") or sys.executable
"""The Python that runs the engine: this one, where TRANSFORMERS_PYTHON names no other."""

PATIENCE = 120.0
"""Seconds in which the engine does what is waited for."""


@dataclass(frozen=True)
class Size:
    """How large a check is. `options`: of `load.py`, for the model and its cache; `budget`: tokens a step."""

    device: str
    options: tuple[str, ...]
    budget: int
    larger_budget: int
    window_s: float
    pairs: int
    cache_tokens: int
    """KV cache tokens in all."""
    fast: tuple[str, ...] = ()
    """Options that make its steps as short as they can be, for the parts that measure time."""


GPU = Size(
    "cuda",
    ("--model", "1b", "--device", "cuda", "--page-size", "32", "--blocks", "4096", "--concurrency", "48",
     "--prompt", "64:1400", "--output", "32:160"),
    1024, 2048, 4.0, 4, 32 * 4096, ("--asynchronous", "--graphs"),
)  # fmt: skip
CPU = Size(
    "cpu",
    ("--model", "tiny", "--blocks", "128", "--prompt", "8:120", "--output", "8:40"),
    64,
    128,
    1.5,
    2,
    16 * 128,
)


def wait_until(done: Any, what: str) -> None:
    """RuntimeError where it takes too long."""
    until = time.monotonic() + PATIENCE
    while not done():
        if time.monotonic() > until:
            raise RuntimeError(f"{what} took more than {PATIENCE:.0f} s")
        time.sleep(0.02)


@dataclass
class Server:
    """A running engine, and the files that it writes."""

    process: subprocess.Popen[str]
    log: Path
    timings: Path
    said: list[str] = field(default_factory=list)

    @property
    def pid(self) -> int:
        return self.process.pid

    def steps(self) -> list[list[int]]:
        """Begin and end (ns) of each step so far, and the allocator's four figures after its forward."""
        return [json.loads(line) for line in self.timings.read_text().splitlines() if line.endswith("]")]

    def run_steps(self, count: int) -> None:
        """Wait until it has run so many more."""
        first = len(self.steps())
        wait_until(
            lambda: len(self.steps()) >= first + count or self.process.poll() is not None, f"{count} steps"
        )


@contextmanager
def serving(directory: Path, name: str, size: Size, *options: str) -> Iterator[Server]:
    """The engine under load; `options` come after those of its size."""
    log, timings = directory / f"{name}.log", directory / f"{name}.timings"
    timings.touch()
    command = [
        ENGINE, str(LOAD), "--log", str(log), "--timings", str(timings), "--requests", "1000000",
        "--seconds", "600", "--batch-tokens", str(size.budget), *size.options, *options,
    ]  # fmt: skip
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("FDTRACE", "PYTHONPATH"))
    }
    with (directory / f"{name}.said").open("w") as said:
        process = subprocess.Popen(
            command, env=kept | {"HF_HUB_OFFLINE": "1"}, stdout=subprocess.PIPE, stderr=said, text=True
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line.startswith("ready"):
            raise RuntimeError(
                f"the engine did not start:\n{(directory / f'{name}.said').read_text()[-2000:]}"
            )
        yield Server(process, log, timings)
    finally:
        process.kill()
        process.wait()


class Recording:
    """`fdtrace attach` of a server, by ptrace from a process of its own; recording when this is made."""

    def __init__(self, server: Server, trace: Path) -> None:
        self.trace = trace
        command = [sys.executable, "-m", "fdtrace", "attach", str(server.pid), "-o", str(trace)]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        self.said = ""
        while "attached in" not in self.said:
            line = self.process.stderr.readline()
            if not line:
                raise RuntimeError(f"fdtrace attach failed: {self.said}")
            self.said += line

    @property
    def attached_ms(self) -> float:
        """How long the attaching took, as the command says."""
        return float(self.said.split("attached in ")[1].split(" ms")[0])

    def cpu_seconds(self) -> float:
        """Of the command and its collector, so far."""
        root = psutil.Process(self.process.pid)
        return sum(sum(one.cpu_times()[:2]) for one in (root, *root.children(recursive=True)))

    def end(self, *, killed: bool = False) -> None:
        """As Ctrl-C does; where the server has died, it ends by itself."""
        if not killed:
            self.process.send_signal(2)
        _, said = self.process.communicate(timeout=PATIENCE)
        if self.process.returncode and not killed:
            raise RuntimeError(said)


def rows(trace: Path, query: str) -> list[tuple[Any, ...]]:
    """The result of a query on a trace."""
    with duckdb.connect(str(trace), read_only=True) as db:
        return db.execute(query).fetchall()
