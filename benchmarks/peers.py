"""What attaching other tools does to the engine that fdtrace attaches to, in one run: memray, py-spy and VizTracer.

    python benchmarks/peers.py [--seconds 8] [--rounds 3] [--only NAME …]

One sandbox engine (Paddle on the CPU, a load that keeps 64 sequences running) is attached to by each tool in turn, in
each round in another order: `--seconds` without a tool, the attach and as long with it, then the tool leaves. The end
of each step is taken from the engine's own log as it is written. The figures are the median step with the tool, as a
multiple of the median step before it, and the longest step from the attach on: the pause that clients see.

A tool that this Python does not have (`pip install memray py-spy viztracer`) is left out, and the output says so.
memray and VizTracer need gdb or lldb, and both must be installed in the engine's Python, which is this one. VizTracer
records each call of a Python function; its last million are written when it leaves.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

ENGINE = (
    *("sandbox", "--device", "cpu", "--max-num-seqs", "64", "--num-blocks", "4000", "--backlog", "4"),
    *("--prompt", "64:64", "--output", "200:200", "--max-num-batched-tokens", "1024"),
)
WARM_S = 5.0
SETTLE_S = 2.0
"""After a tool has left, before the next one is measured."""


class Engine:
    """A sandbox engine under load, and when its steps ended."""

    def __init__(self, directory: Path) -> None:
        self.ends: list[float] = []
        log = directory / f"steps-{time.monotonic_ns()}"
        os.mkfifo(log)
        command = [sys.executable, "-m", "fdtrace", *ENGINE, "--log-steps", str(log)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self._reader = threading.Thread(target=self._read, args=(log,), daemon=True)
        self._reader.start()
        assert self.process.stdout is not None
        self.pid = int(self.process.stdout.readline().split()[1])
        time.sleep(WARM_S)

    def _read(self, log: Path) -> None:
        with log.open() as lines:
            for _ in lines:
                self.ends.append(time.perf_counter())

    def steps(self, since: float, until: float) -> list[float]:
        """Milliseconds of the steps that ended in a span of time."""
        ends = [end for end in self.ends if since <= end <= until]
        return [1e3 * (after - before) for before, after in pairwise(ends)]

    def close(self) -> None:
        """End the engine."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def attachers(directory: Path, seconds: float) -> dict[str, Callable[[int], list[str]]]:
    """The command of each tool that attaches to a process; it ends by Ctrl-C."""
    python, tool = sys.executable, shutil.which("py-spy", path=str(Path(sys.executable).parent)) or "py-spy"

    def out(name: str) -> str:
        return str(directory / f"{name}-{time.monotonic_ns()}")

    return {
        "nothing": lambda _: [python, "-c", "import signal; signal.pause()"],
        "fdtrace attach": lambda pid: [
            python,
            "-m",
            "fdtrace",
            "attach",
            str(pid),
            "-o",
            out("t") + ".duckdb",
        ],
        "py-spy record, 100 Hz": lambda pid: [
            *(tool, "record", "--rate", "100", "--format", "raw", "--pid", str(pid), "-o", out("spy")),
        ],
        "memray attach": lambda pid: [
            python,
            "-m",
            "memray",
            "attach",
            "-f",
            "--duration",
            str(max(1, int(seconds))),
            "-o",
            out("memray"),
            str(pid),
        ],
        "viztracer --attach": lambda pid: [
            *(python, "-m", "viztracer", "--attach", str(pid), "-o", out("viztracer") + ".json"),
        ],
    }


NEEDS = {"memray attach": "memray", "viztracer --attach": "viztracer"}
"""Tool -> the package of this Python that it is."""


def missing(name: str) -> str:
    """Why a tool cannot be measured here; empty: it can."""
    if name.startswith("py-spy") and not shutil.which(
        "py-spy", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    ):
        return "py-spy is not installed"
    package = NEEDS.get(name)
    if package is not None and importlib.util.find_spec(package) is None:
        return f"{package} is not installed in this Python"
    if package is not None and not (shutil.which("gdb") or shutil.which("lldb")):
        return f"{package} attaches by gdb or lldb, and neither is here"
    return ""


def attach(engine: Engine, command: list[str], seconds: float) -> tuple[float, float]:
    """Attach a tool for a while: its median step as a multiple of that before, and the longest step, ms."""
    begun = time.perf_counter()
    time.sleep(seconds)
    attached = time.perf_counter()
    tool = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    time.sleep(seconds)
    left = time.perf_counter()
    before, with_tool = engine.steps(begun, attached), engine.steps(attached, left)
    if tool.poll() not in (None, 0):
        raise RuntimeError(f"it ended with {tool.returncode}: {' '.join(command)}")
    if tool.poll() is None:
        tool.send_signal(signal.SIGINT)
    tool.wait(60)
    time.sleep(SETTLE_S)
    return statistics.median(with_tool) / statistics.median(before), max(with_tool)


def measure(options: argparse.Namespace, directory: Path) -> dict[str, list[tuple[float, float]]]:
    """The figures of each tool, one a round."""
    tools = {name: make for name, make in attachers(directory, options.seconds).items() if not missing(name)}
    if options.only:
        tools = {name: make for name, make in tools.items() if name.split(",")[0] in options.only}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in tools}
    engine = Engine(directory)
    try:
        for number in range(options.rounds):
            names = list(tools)
            for name in names[number % len(names) :] + names[: number % len(names)]:
                found[name].append(attach(engine, tools[name](engine.pid), options.seconds))
    finally:
        engine.close()
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=8.0, help="without a tool, and then with it")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", metavar="NAME")
    options = parser.parse_args()
    for name in attachers(Path(), options.seconds):
        if why := missing(name):
            print(f"left out: {name}: {why}", file=sys.stderr)
    with tempfile.TemporaryDirectory() as directory:
        print("| with | step, of that without | longest step (ms) |\n|---|---|---|")
        for name, rounds in measure(options, Path(directory)).items():
            ratio = statistics.median(ratio for ratio, _ in rounds)
            print(f"| {name} | {ratio:.2f} | {max(longest for _, longest in rounds):,.0f} |", flush=True)


if __name__ == "__main__":
    main()
