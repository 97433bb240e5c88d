"""How quickly the replay screen answers: 1,000,000 steps, three panes, 200x50, in a real pseudo-terminal.

    python benchmarks/screen.py [--steps N] [--keys N] [--columns 200] [--rows 50] [--trace T]

How it measures. The screen runs in a process of its own on a pseudo-terminal; this process plays the
terminal: it writes a key and reads what comes back. A key's time runs from the write to the last byte of its
answer, the answer being over when nothing came for `QUIET` seconds: so it holds the charts, the figures and
the requests of the step, which are fetched in a thread. The steps and the 128 requests a step are in memory,
so reading a trace is not in these times. Opening is timed in two parts: starting Python and importing, and
from `run_replay` to the last byte of the first screen with all three panes filled. CPU is the process's own,
of all its threads, a key: it does not suffer from other work on the machine, as the times do. Memory is the
process's highest resident size; "before" is that of the same process with the data but without the screen.

With --trace (`big_trace.py T` makes a large one) it is the command itself, `fdtrace replay T --as-recorded -f
pr7438 -f pr7499`, from its start: the first useful screen is there when the recording's chart and border are.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from fdtrace.recorder.trace.recording import EngineInfo, LoadedDetails, Recording
from fdtrace.replayer.history.as_recorded import recorded_history
from fdtrace.replayer.model.events import StepRow
from fdtrace.tui.app import run_replay
from fdtrace.tui.panes.draw_chart import draw
from fdtrace.tui.panes.jobs import PaneReplay
from fdtrace.tui.panes.layout import Scale
from fdtrace.tui.panes.series import Series, Window
from fdtrace.tui.theme import BLOCKS, DARK, Look

QUIET = 0.08
FIRST = b"1 recorded"
"""The first words that come with the recording's chart."""

LIMIT = 8192
REQUESTS = 128


def synthetic(num_steps: int, seed: int, *, exceeds: bool) -> dict[str, Any]:
    """Columns of a busy server: waves of load, rare bursts over the limit, memory that only grows."""
    random = np.random.default_rng(seed)
    x = np.arange(num_steps) / num_steps
    load = (0.45 + 0.3 * np.sin(x * 25) + 0.1 * np.sin(x * 300)) * LIMIT
    ran = np.clip(load + random.normal(0, LIMIT * 0.08, num_steps), 20, LIMIT).astype(np.int64)
    if exceeds:
        over = random.random(num_steps) < 0.002 * (np.sin(x * 60) > 0.8)
        ran[over] = LIMIT + random.integers(1, 3000, int(over.sum()))
    decodes = np.minimum(ran, REQUESTS * 5)
    return {
        "step": np.arange(num_steps, dtype=np.int64),
        "num_tokens": ran,
        "token_budget": np.full(num_steps, LIMIT, np.int64),
        "num_prefill_tokens": ran - decodes,
        "num_decode_tokens": decodes,
        "num_running": np.full(num_steps, REQUESTS, np.int64),
        "num_waiting": random.integers(0, 40, num_steps),
        "num_preempted": (random.random(num_steps) < 1e-5).astype(np.int64),
        "num_stalled": np.zeros(num_steps, np.int64),
        "num_free_blocks": random.integers(0, 20_000, num_steps),
        "reserved_bytes": np.maximum.accumulate(ran) * 5_000_000 + (20 << 30),
    }


def child(num_steps: int, ready: int, go: int) -> None:
    """The process on the pseudo-terminal: imports, data, then the screen when it is told to."""

    os.write(ready, b"i")
    engine = EngineInfo(0, "fastdeploy", "2.5.0", LIMIT, 256, 4, 64, 20_000, 32_768, spec_method="mtp")

    def recording(seed: int, *, exceeds: bool) -> Recording:
        steps = synthetic(num_steps, seed, exceeds=exceeds)
        return Recording(engine, steps, {}, (), LoadedDetails.unknown(0))

    def rows(step: int) -> list[StepRow]:
        return [StepRow(f"request-{step}-{at}", "decode", 5, 100 + at, 4, 2, 7) for at in range(REQUESTS)]

    def replay(name: str, seed: int, *, exceeds: bool) -> PaneReplay:
        history = recorded_history(recording(seed, exceeds=exceeds), rows)
        history = replace(history, name=name, how="rescheduled")
        return PaneReplay(name, "rescheduled", lambda _progress, _cancelled: history)

    recorded = recording(1, exceeds=True)
    replays = [replay("pr7438", 2, exceeds=True), replay("pr7499", 3, exceeds=False)]
    os.write(ready, struct.pack("=q", psutil.Process().memory_info().rss))
    os.read(go, 1)
    run_replay(recorded, replays, rows=rows)


class Screen:
    """The other end of the pseudo-terminal."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.master, self._slave = pty.openpty()
        size = struct.pack("HHHH", options.rows, options.columns, 0, 0)
        fcntl.ioctl(self._slave, termios.TIOCSWINSZ, size)
        self.screen = b""

    def _start(self, command: list[str], *passed: int) -> None:
        env = {**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor"}
        self._started = time.perf_counter()
        self.process = subprocess.Popen(
            [sys.executable, *command], stdin=self._slave, stdout=self._slave, stderr=self._slave, env=env,
            pass_fds=passed, start_new_session=True,
        )  # fmt: skip
        for descriptor in (self._slave, *passed):
            os.close(descriptor)

    def open_columns(self, num_steps: int) -> None:
        """Open the screen on columns in memory, and print how long it takes."""
        ready, ready_child = os.pipe()
        go_child, go = os.pipe()
        self._start(
            [__file__, "--steps", str(num_steps), "--child", f"{ready_child},{go_child}"],
            ready_child,
            go_child,
        )
        os.read(ready, 1)
        print(f"start of Python and imports {time.perf_counter() - self._started:6.2f} s")
        before = struct.unpack("=q", os.read(ready, 8))[0]
        print(f"resident memory without it  {before / 2**20:6,.0f} MiB")
        os.write(go, b"g")
        print(
            f"first screen, all panes     {self._answer(time.perf_counter(), first=30.0, quiet=0.5):6.2f} s"
        )

    def open_trace(self, trace: Path) -> None:
        """Open the command on a trace, and print how long it takes."""
        formulas = ("--as-recorded", "-f", "pr7438", "-f", "pr7499")
        self._start(["-m", "fdtrace", "replay", str(trace), *formulas])
        while FIRST not in self.screen and select.select([self.master], [], [], 60)[0]:
            self.screen += os.read(self.master, 1 << 20)
        useful = time.perf_counter() - self._started
        print(f"first useful screen         {useful:6.2f} s after the command was started")
        print(f"all panes                   {self._answer(self._started, first=30.0, quiet=2):6.2f} s")

    def press(self, key: str) -> float:
        """Seconds from a key to the last byte of its answer; 0 where none came."""
        started = time.perf_counter()
        os.write(self.master, key.encode())
        return self._answer(started, first=1.0, quiet=QUIET)

    def _answer(self, started: float, *, first: float, quiet: float) -> float:
        last, wait, self.screen = started, first, b""
        while select.select([self.master], [], [], wait)[0]:
            self.screen += os.read(self.master, 1 << 20)
            last, wait = time.perf_counter(), quiet
        return last - started

    def cpu(self) -> float:
        """Seconds of CPU that the screen's process has used."""
        times = psutil.Process(self.process.pid).cpu_times()
        return float(times.user + times.system)

    def resident(self) -> int:
        """The highest resident size so far, bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) * 1024

    def close(self) -> None:
        """Leave the screen."""
        os.write(self.master, b"q")
        deadline = time.monotonic() + 20
        while self.process.poll() is None and time.monotonic() < deadline:
            if select.select([self.master], [], [], 0.1)[0]:
                try:
                    os.read(self.master, 1 << 20)
                except OSError:
                    break
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


def answers(screen: Screen, count: int) -> Iterator[tuple[str, list[float], float, int]]:
    """Each kind of key with its times in seconds, its mean CPU seconds and its mean bytes."""
    kinds = (
        ("step (l), everything in sight", "", ("l",)),
        ("next exceeded (n)", "g", ("n",)),
        ("zoom in and out (w, s)", "", ("w", "w", "w", "w", "w", "w", "s", "s", "s", "s", "s", "s")),
        ("step (l), zoomed in", "0wwwwwwwwww", ("l",)),
        ("next exceeded (n), zoomed in", "g", ("n",)),
        ("pan (d, a)", "", ("d", "d", "d", "a", "a", "a")),
        ("page of a step's requests", "", ("\x1b[6~", "\x1b[5~")),
        ("whole and one pane (z)", "0", ("z",)),
    )
    for name, before, keys in kinds:
        for key in before:
            screen.press(key)
        times, size, cpu = [], 0, screen.cpu()
        for at in range(count):
            times.append(screen.press(keys[at % len(keys)]))
            size += len(screen.screen)
        yield name, times, (screen.cpu() - cpu) / count, size // count


def charts(num_steps: int, size: tuple[int, int]) -> dict[str, list[float]]:
    """Seconds to draw one pane's chart: the screen's, and plotext's of the highest alone."""

    engine = EngineInfo(0, "fastdeploy", "", LIMIT, 256, 4, 64, 20_000, 32_768)
    steps = synthetic(num_steps, 1, exceeds=True)
    recording = Recording(engine, steps, {}, (), LoadedDetails.unknown(0))
    series = Series(recorded_history(recording))
    window, scale, look = (
        Window.over(0, num_steps),
        Scale(series.peak, series.peak_reserved),
        Look(BLOCKS, DARK),
    )
    from fdtrace.tui.report.chart import tokens_chart  # imports plotext, which the screen does not

    ways = {
        "own": lambda: draw(series, window, size, scale, look),
        "plotext": lambda: tokens_chart(series, size[0], height=size[1]),
    }
    return {name: [_seconds(way) for _ in range(20)] for name, way in ways.items()}


def _seconds(way: Any) -> float:
    started = time.perf_counter()
    way()
    return time.perf_counter() - started


def percentile(times: list[float], share: float) -> float:
    """A percentile in milliseconds."""
    ordered = sorted(times)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] * 1000


def report(options: argparse.Namespace) -> None:
    """Measure and print."""
    screen = Screen(options)
    what = options.trace or f"{options.steps:,} steps"
    print(f"{what}, three panes, {options.columns}x{options.rows}, {os.cpu_count()} cores")
    if options.trace:
        screen.open_trace(options.trace)
    else:
        screen.open_columns(options.steps)
    print(f"\n{'key to settled paint':<32}{'median':>9}{'p95':>9}{'most':>9}{'CPU':>9}{'bytes':>9}")
    for name, times, cpu, size in answers(screen, options.keys):
        row = "".join(f"{percentile(times, share):7.1f}ms" for share in (0.5, 0.95, 1.0))
        print(f"{name:<32}{row}{cpu * 1000:7.1f}ms{size:9,}")
    print(f"\nresident memory {screen.resident() / 2**20:,.0f} MiB at most")
    screen.close()
    width, height = options.columns // 3 - 2, (options.rows - 6) * 2 // 3 - 2
    print(f"\none pane's chart, {width}x{height:<14}{'median':>9}{'p95':>9}")
    for name, times in charts(options.steps, (width, height)).items():
        print(f"{name:<32}{percentile(times, 0.5):7.1f}ms{percentile(times, 0.95):7.1f}ms")


def main() -> None:
    """Measure, or be the process that is measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--keys", type=int, default=60, help="keys of each kind")
    parser.add_argument("--columns", type=int, default=200)
    parser.add_argument("--rows", type=int, default=50)
    parser.add_argument("--trace", type=Path, metavar="T", help="open this trace by the command itself")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        ready, go = map(int, options.child.split(","))
        child(options.steps, ready, go)
    else:
        report(options)


if __name__ == "__main__":
    main()
