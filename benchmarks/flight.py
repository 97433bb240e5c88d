"""A flight recorder over an hour at 100 steps a second, driven as fast as it goes; and killed at random moments.

    python benchmarks/flight.py [--minutes N] [--requests N] [--kills N]

First: the ring's size on the disk and this process's memory, minute by minute of the flight; and whether the kept
traces are those that they should be. Then: the collector is killed (SIGKILL) again and again while steps come; at the
end, each trigger that may keep a trace must have kept one, whole.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fdtrace.recorder.flight.flight_plan import SECOND, FlightPlan
from tests.recorder.driven_flight import DrivenFlight
from tests.recorder.killed_flight import RATE, killed, triggered

EVERY = 300
"""Steps between two publications: three seconds of the flight."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--minutes", type=int, default=60)
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--kills", type=int, default=50)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        an_hour(Path(directory) / "flights", options.minutes, options.requests)
    with tempfile.TemporaryDirectory() as directory:
        wanted, kept = killed(Path(directory) / "flights", options.kills)
        print(
            f"killed {options.kills} times: {len(wanted)} triggers, {len(kept)} traces kept, equal: {wanted == kept}"
        )


def an_hour(directory: Path, minutes: int, requests: int) -> None:
    """Drive the flight; every 7 minutes a step exceeds the limit, and once more a minute later: too soon."""
    flight = DrivenFlight(
        directory, FlightPlan(window_ns=600 * SECOND), ["exceeded"], rows=requests, segments=16
    )
    first = {minute * 60 * RATE for minute in range(7, minutes, 7)}
    again = {step + 60 * RATE for step in first}
    process, begun = psutil.Process(), time.perf_counter()
    print("minute   ring MiB   files   kept   memory MiB")
    sizes = []
    for number in range(minutes * 60 * RATE):
        flight.step(number * SECOND // RATE, tokens=9 if number in first | again else 1)
        if number % EVERY == EVERY - 1:
            flight.publish()
        if number % (60 * RATE) == 60 * RATE - 1:
            files = [path.stat() for path in flight.directory.parts.iterdir()]
            size, memory = (
                sum(file.st_size for file in files) / (1 << 20),
                process.memory_info().rss / (1 << 20),
            )
            sizes.append((size, memory))
            minute = (number + 1) // (60 * RATE)
            if minute % 5 == 0 or minute == minutes:
                print(
                    f"{minute:6d} {size:10.1f} {len(files):7d} {len(flight.directory.kept):6d} {memory:12.0f}"
                )
    flight.end()
    flown = sizes[12:] or sizes
    disk, memory = (max(column) / min(column) for column in zip(*flown, strict=True))
    print(f"from minute 13 on: largest / smallest ring {disk:.2f}, memory {memory:.2f}")
    kept = [step for path in flight.directory.kept for step in triggered(path)]
    expected = sorted(step for step in first if step < minutes * 60 * RATE)
    suppressed = flight.directory.status()["num_suppressed"]
    expected_suppressed = sum(step < minutes * 60 * RATE for step in again)
    print(
        f"kept {kept == expected} ({len(kept)} of {len(expected)}), suppressed {suppressed} of {expected_suppressed}"
    )
    print(f"{minutes * 60 / (time.perf_counter() - begun):.0f} times as fast as the engine")


if __name__ == "__main__":
    main()
