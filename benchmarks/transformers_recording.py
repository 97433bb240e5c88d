"""What recording costs transformers' continuous batching on a CPU: windows with and without, and attach cycles.

    TRANSFORMERS_PYTHON=… python benchmarks/transformers_recording.py [--layers 24] [--pairs 10] [--cycles 100]

One load goes on all the time, and windows of it are recorded or not in turn (with, without, without, with). The ratio
is of the median time from one step's end to the next, recorded to not: the median over the pairs, and a range that
holds it with 95%. Then it attaches and detaches again and again under the same load, whose requests must all be
answered as they were asked.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.gpu.server import CPU, Recording, Server, Size, serving
from tests.gpu.time_parts import hook, largest_gap


class Watched:
    """A server's process: what it holds, and the largest gaps between its steps."""

    def __init__(self, server: Server) -> None:
        self.server, self.process = server, psutil.Process(server.pid)
        self.maps = Path(f"/proc/{server.pid}/maps")

    def held(self) -> dict[str, int]:
        """Resident memory in KiB, and how many descriptors, threads and mappings there are."""
        return {
            "resident_kib": self.process.memory_info().rss // 1024,
            "descriptors": self.process.num_fds(),
            "threads": self.process.num_threads(),
            "mappings": self.maps.read_bytes().count(b"\n"),
        }

    @contextmanager
    def gap(self, gaps: list[float]) -> Iterator[None]:
        """Add the longest time between the ends of two steps meanwhile, ms."""
        offset = self.server.timings.stat().st_size
        yield
        with self.server.timings.open("rb") as file:
            file.seek(offset)
            lines = [
                line for line in file.read().splitlines() if line.startswith(b"[") and line.endswith(b"]")
            ]
        gaps.append(largest_gap(0, [json.loads(line) for line in lines]))


def cycles(directory: Path, size: Size, count: int) -> dict[str, Any]:
    """Attach and detach `count` times under load; what that did to the server.

    The load itself makes the server grow: its client keeps a line for each request. So the growth is measured as long
    without recordings too, in the end.
    """
    took: list[float] = []
    gaps: list[float] = []
    plain: list[float] = []
    with serving(directory, "cycles", size, "--seconds", "7200") as server:
        server.run_steps(50)
        watched, warm = Watched(server), count // 10
        for number in range(count):
            if number == warm:  # what is loaded once is there
                before, since = watched.held(), time.monotonic()
            with watched.gap(gaps):
                recording = Recording(server, directory / "cycle.duckdb")
                took.append(recording.attached_ms)
                recording.end()
            (directory / "cycle.duckdb").unlink(missing_ok=True)
        after, seconds = watched.held(), time.monotonic() - since
        alone = min(seconds, 60.0)
        with watched.gap(plain):
            time.sleep(alone)
        later = watched.held()
        left = b"fdtrace-rings" in watched.maps.read_bytes()
        server.process.terminate()  # it takes in what is under way, and says what came back
        out, _ = server.process.communicate(timeout=300)
    measured = count - warm
    more = {name: after[name] - before[name] for name in after}
    return {
        "cycles": count, "attached_ms": statistics.median(took), "attached_ms_most": max(took),
        "largest_gap_ms": statistics.median(gaps), "largest_gap_ms_most": max(gaps),
        "without_largest_gap_ms": plain[0], "seconds_a_cycle": seconds / measured,
        "more_kib_a_cycle": more["resident_kib"] / measured,
        "more_kib_a_second": more["resident_kib"] / seconds,
        "without_more_kib_a_second": (later["resident_kib"] - after["resident_kib"]) / alone,
        "more_descriptors": more["descriptors"], "more_threads": more["threads"], "more_mappings": more["mappings"],
        "ring_still_mapped": left, "server": json.loads(out.splitlines()[-1]),
    }  # fmt: skip


def range_95(values: list[float]) -> tuple[float, float]:
    """A range that holds the median of what the values are drawn from, with 95% at least: between two of the sorted
    values, by the binomial distribution. If there are too few values, all of them.
    """
    ordered, count = sorted(values), len(values)
    cut, outside = (
        0,
        1 / 2**count,
    )  # values to leave out on each side; the chance that the median is among these
    while 2 * (outside + math.comb(count, cut + 1) / 2**count) <= 0.05:
        cut += 1
        outside += math.comb(count, cut) / 2**count
    return ordered[cut], ordered[count - 1 - cut]


def windows(directory: Path, size: Size) -> dict[str, Any]:
    """The windows with their ranges."""
    found = hook(directory, size)
    return {
        **found,
        "ratio_95": range_95(found["ratios"]),
        "more_processor_us_95": range_95(found["more_processor_us_of_each"]),
    }


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=4.0, help="of a window")
    parser.add_argument("--cycles", type=int, default=0)
    args = parser.parse_args()
    size = replace(
        CPU, options=(*CPU.options, "--layers", str(args.layers)), pairs=args.pairs, window_s=args.seconds
    )
    with tempfile.TemporaryDirectory() as name:
        if args.pairs:
            print("windows:", json.dumps(windows(Path(name), size)), flush=True)
        if args.cycles:
            print("cycles:", json.dumps(cycles(Path(name), size, args.cycles)), flush=True)


if __name__ == "__main__":
    main()
