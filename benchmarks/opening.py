"""Opening a large trace: seconds and memory of each way in, and of the screen's keys, beside the goals.

    python -m benchmarks.opening [TRACE] [--steps N] [--keys N] [--rounds 3]

TRACE is made by `big_trace.py` first (--steps, a million by default) unless it is there. Each figure but those of the
keys is from processes of their own, of which the first may wait for the disk: the median of the others is shown. Memory
is the highest resident size. The screen is the command itself in a real pseudo-terminal, 200x50, as in `screen.py`: its
first useful screen is there when the recording's chart and border are. Two screens are opened: of the recording with
one formula as recorded, and of the recording beside the default formulas, which are rescheduled in the background.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.big_trace import make, record
from benchmarks.screen import Screen, percentile

IN_A_PROCESS = """
import json, resource, sys, time
begun = time.perf_counter()
import fdtrace
from pathlib import Path
from fdtrace.recorder.trace.trace import open_trace
seconds = {"imports": time.perf_counter() - begun}

def timed(name, call):
    begun = time.perf_counter()
    result = call()
    seconds[name] = time.perf_counter() - begun
    return result

path, whole = Path(sys.argv[1]), sys.argv[2] == "whole"
trace = timed("fdtrace.open", lambda: fdtrace.open(path))
if whole:
    timed("recording()", trace.recording)
else:
    query = "SELECT step, excess_tokens FROM exceeded ORDER BY step"
    timed("FROM exceeded, first", lambda: trace.sql(query).fetchall())
    timed("FROM exceeded", lambda: trace.sql(query).fetchall())
    with open_trace(path) as opened:
        timed("on demand", opened.recording_on_demand)
seconds["MiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps(seconds))
"""

GOALS = {"first useful screen": 1.0, "key": 0.050, "exceeded": 0.020, "memory": 1024}


def run(*command: str) -> tuple[float, float, str]:
    """Wall seconds, the highest resident MiB, and the output of a command."""
    begun = time.perf_counter()
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{command} failed")
    return time.perf_counter() - begun, usage.ru_maxrss / 1024, output


def show(name: str, seconds: float, more: str = "") -> None:
    """A line of the table."""
    print(f"{name:<44}{seconds * 1000:11,.1f} ms  {more}")


def commands(trace: Path, rounds: int) -> None:
    """`info`, and the library."""
    runs = [run("-m", "fdtrace", "info", str(trace)) for _ in range(rounds + 1)][1:]
    show("fdtrace info", statistics.median(r[0] for r in runs), f"{max(r[1] for r in runs):,.0f} MiB")
    for kind in ("parts", "whole"):
        found = [json.loads(run("-c", IN_A_PROCESS, str(trace), kind)[2]) for _ in range(rounds + 1)][1:]
        for name in found[0]:
            if name != "MiB":
                show(name, statistics.median(one[name] for one in found))
        print(f"{'':<44}{max(one['MiB'] for one in found):11,.0f} MiB")


class OpenedScreen(Screen):
    """The command `fdtrace replay` on the pseudo-terminal."""

    def open(self, trace: Path, *options: str) -> float:
        """Seconds from the start of the command to its first useful screen."""
        self._start(["-m", "fdtrace", "replay", str(trace), *options])
        while b" exceed" not in self.screen:
            if not select.select([self.master], [], [], 120)[0]:
                raise SystemExit(f"no screen: {self.screen[-500:]!r}")
            self.screen += os.read(self.master, 1 << 20)
        return time.perf_counter() - self._started

    def settle(self, seconds: float = 1.0) -> float:
        """Wait until nothing comes for a while. Seconds from the start to the last byte."""
        return self._answer(self._started, first=60.0, quiet=seconds)


KEYS = (
    ("next exceeded (n)", "g", "nnnnnn"),
    ("step (l)", "", "llllll"),
    ("zoom in and out (w, s)", "0", "wwwwwwssssss"),
    ("step (l), zoomed in", "0wwwwwwwwww", "l"),
    ("next exceeded (n), zoomed in", "g", "n"),
    ("pan (d, a)", "", "dddaaa"),
)


def screen(trace: Path, size: argparse.Namespace, rounds: int, *options: str) -> None:
    """The screen: its opening and its keys."""
    useful, resident = [], 0
    for at in range(rounds + 1):
        opened = OpenedScreen(size)
        useful.append(opened.open(trace, *options))
        if at < rounds:
            opened.close()
    show("first useful screen", statistics.median(useful[1:]), f"goal {GOALS['first useful screen']:.0f} s")
    show("nothing more comes for a second", opened.settle())
    print(f"{'':<44}{opened.resident() / 2**20:11,.0f} MiB after opening")
    for name, before, keys in KEYS:
        for key in before:
            opened.press(key)
        times = [opened.press(keys[at % len(keys)]) for at in range(size.keys)]
        times = [seconds for seconds in times if seconds]
        p95 = f"95%: {percentile(times, 0.95):.1f} ms; goal {GOALS['key'] * 1000:.0f}"
        show(f"a key: {name}", statistics.median(times), p95)
    resident = opened.resident()
    print(f"{'':<44}{resident / 2**20:11,.0f} MiB at most; goal {GOALS['memory']:,}")
    opened.close()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("trace", nargs="?", type=Path)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--keys", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=("commands", "screen", "formulas"))
    parser.add_argument("--columns", type=int, default=200)
    parser.add_argument("--rows", type=int, default=50)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        trace = options.trace or Path(directory) / "big.duckdb"
        if not trace.exists():
            recording = Path(directory) / "sandbox.duckdb"
            record(recording)
            make(trace, options.steps, recording)
        print(f"{trace.name}: {trace.stat().st_size:,} bytes, {os.cpu_count()} cores")
        if options.only in (None, "commands"):
            commands(trace, options.rounds)
        if options.only in (None, "screen"):
            print("\nthe screen, the recording beside a formula as recorded")
            screen(trace, options, options.rounds, "--as-recorded", "-f", "pr7499")
        if options.only in (None, "formulas"):
            print("\nthe screen, while formulas are rescheduled")
            screen(trace, options, options.rounds)


if __name__ == "__main__":
    main()
