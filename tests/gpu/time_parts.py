"""The parts of the GPU check about time: what a recorded step costs, and what attaching does to the engine."""

from __future__ import annotations

import itertools
import statistics
import time
from pathlib import Path

from tests.gpu.outcome import Figures
from tests.gpu.server import Recording, Size, serving


def hook(directory: Path, size: Size) -> Figures:
    """Windows of one load, recorded and not in turn: the median time from a step's end to the next, and the processor
    time that the loop's thread takes for it, which other work on the machine does not count in.
    """
    took: dict[bool, list[float]] = {True: [], False: []}
    worked: dict[bool, list[float]] = {True: [], False: []}
    with serving(directory, "hook", size, *size.fast) as server:
        server.run_steps(50)
        for number, recorded in enumerate([True, False, False, True] * (size.pairs // 2)):
            recording = Recording(server, directory / f"hook{number}.duckdb") if recorded else None
            time.sleep(0.3)
            first = len(server.steps())
            time.sleep(size.window_s)
            steps = server.steps()[first:]
            pairs = list(itertools.pairwise(steps))
            took[recorded].append(statistics.median(b[1] - a[1] for a, b in pairs))
            worked[recorded].append(statistics.median(b[6] - a[6] for a, b in pairs))
            if recording is not None:
                recording.end()
    ratios = [a / b for a, b in zip(took[True], took[False], strict=True)]
    more = [a - b for a, b in zip(worked[True], worked[False], strict=True)]
    return {
        "step_ms": statistics.median(took[False]) / 1e6, "recorded_step_ms": statistics.median(took[True]) / 1e6,
        "ratio": statistics.median(ratios), "ratios": ratios,
        "processor_us": statistics.median(worked[False]) / 1e3, "more_processor_us": statistics.median(more) / 1e3,
        "more_processor_us_of_each": [one / 1e3 for one in more],
    }  # fmt: skip


def largest_gap(begun: int, steps: list[list[int]]) -> float:
    """The longest time between the ends of two steps from `begun` on, ms."""
    ends = [step[1] for step in steps if step[1] >= begun]
    return max((b - a for a, b in zip(ends, ends[1:])), default=0) / 1e6  # noqa: B905, RUF007


def attaching(directory: Path, size: Size) -> Figures:
    """How long attaching takes, the largest gap between two steps while it does, and what the collector costs."""
    attached, gaps, plain, shares = [], [], [], []
    with serving(directory, "attach", size, *size.fast) as server:
        server.run_steps(50)
        for number in range(2 * size.pairs):
            begun = time.time_ns()
            time.sleep(1.0)
            plain.append(largest_gap(begun, server.steps()))
            begun = time.time_ns()
            recording = Recording(server, directory / f"attach{number}.duckdb")
            attached.append(recording.attached_ms)
            time.sleep(1.0)
            gaps.append(largest_gap(begun, server.steps()))
            before, since = recording.cpu_seconds(), time.monotonic()
            time.sleep(1.0)
            shares.append((recording.cpu_seconds() - before) / (time.monotonic() - since))
            recording.end()
    return {
        "cycles": len(attached), "attached_ms": statistics.median(attached), "attached_ms_most": max(attached),
        "largest_gap_ms": statistics.median(gaps), "largest_gap_ms_most": max(gaps),
        "without_ms": statistics.median(plain), "without_ms_most": max(plain),
        "collector_of_one_core": statistics.median(shares),
    }  # fmt: skip
