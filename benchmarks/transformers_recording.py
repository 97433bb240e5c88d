"""What recording costs transformers' continuous batching on a CPU: windows with and without, and attach cycles.

    TRANSFORMERS_PYTHON=… python benchmarks/transformers_recording.py [--layers 24] [--pairs 10] [--cycles 100]

One load goes on all the time, and windows of it are recorded or not in turn (with, without, without, with). The ratio
is of the median time from one step's end to the next, recorded to not, the median over the pairs. Then it attaches and
detaches again and again under the same load, whose requests must all be answered as they were asked.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.gpu.parts import hook, largest_gap
from tests.gpu.server import CPU, Recording, Size, serving


def cycles(directory: Path, size: Size, count: int) -> dict[str, Any]:
    """Attach and detach `count` times under load; what that did to the server."""
    took, gaps, plain = [], [], []
    with serving(directory, "cycles", size) as server:
        server.run_steps(50)
        process = psutil.Process(server.pid)
        begun = time.time_ns()
        time.sleep(5)
        plain.append(largest_gap(begun, server.steps()))
        before = process.memory_info().rss, process.num_fds(), process.num_threads()
        for number in range(count):
            begun = time.time_ns()
            recording = Recording(server, directory / "cycle.duckdb")
            took.append(recording.attached_ms)
            recording.end()
            gaps.append(largest_gap(begun, server.steps()))
            (directory / "cycle.duckdb").unlink(missing_ok=True)
            if number == count // 10:
                before = process.memory_info().rss, process.num_fds(), process.num_threads()
        after = process.memory_info().rss, process.num_fds(), process.num_threads()
        server.process.terminate()  # it takes in what is under way, and says what came back
        out, _ = server.process.communicate(timeout=300)
    return {
        "cycles": count, "attached_ms": statistics.median(took), "attached_ms_most": max(took),
        "largest_gap_ms": statistics.median(gaps), "largest_gap_ms_most": max(gaps), "without_ms": plain[0],
        "more_kib_a_cycle": (after[0] - before[0]) / 1024 / max(1, count - count // 10),
        "more_descriptors": after[1] - before[1], "more_threads": after[2] - before[2],
        "server": json.loads(out.splitlines()[-1]),
    }  # fmt: skip


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
            print("windows:", json.dumps(hook(Path(name), size)), flush=True)
        if args.cycles:
            print("cycles:", json.dumps(cycles(Path(name), size, args.cycles)), flush=True)


if __name__ == "__main__":
    main()
