"""How long one replay inside a sweep takes, beside the same replay with all that it keeps for a screen.

    python benchmarks/sweep.py [TRACE] [--rounds 5] [--other CHECKOUT]

Without TRACE, the sandbox engine is recorded first: 2,000 steps of 48 sequences. Each round runs both replays of each
variant, one after the other; seconds are of CPU, medians over the rounds. The answers must be equal.

With --other, the code of another checkout sweeps the same variants in the same rounds: what changed between the two.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from fdtrace.library.replay_variants import VariantReplayer
from fdtrace.recorder.trace.recording import Recording
from fdtrace.replayer.analysis.token_times import replayed_latencies
from fdtrace.replayer.formulas import parse_formula
from fdtrace.replayer.replay.workload_replay import Replay
from fdtrace.searching.sweeping import SweepSource, SweepWorker
from fdtrace.variants import variant_of

FORMULA = "pr7499"
VARIANTS: tuple[dict[str, Any], ...] = (
    {"max_num_seqs": 40},
    {"max_num_seqs": 64},
    {"max_num_batched_tokens": 1024},
)
FIGURES = ("steps", "exceeded", "peak_tokens", "preempted", "stalls", "ttft_p95", "itl_p95", "latency_p99")
OTHER = """
import json, sys, time
from pathlib import Path
try:
    import fdtrace.searching.sweeping as sweeping
except ImportError:  # where it was in an earlier checkout
    import fdtrace.sweeping as sweeping
source = sweeping.SweepSource(Path(sys.argv[1]), None, {"formula": sys.argv[2]}, None, None, sys.executable)
worker = getattr(sweeping, "SweepWorker", None) or sweeping._Worker
worker = worker(source)
variants = json.loads(sys.argv[3])
worker.row(variants[0])
for variant in variants:
    began = time.process_time()
    row = worker.row(variant)
    print(json.dumps([time.process_time() - began, row]))
"""


def whole(recording: Recording, settings: dict[str, Any]) -> tuple[float, dict[str, Any]]:
    """CPU seconds and figures of a replay that keeps the rows of its steps, with its fit of memory."""
    began = time.process_time()
    variant = variant_of("swept", {"formula": FORMULA, **settings}, sys.executable)
    with VariantReplayer(recording, [variant], None, None, None) as replayer:
        experiment = replayer.experiment(variant)
        run = Replay(experiment.workload, parse_formula(FORMULA), sums=False)
        run.run()
        latency = replayed_latencies(run, {})
    seconds = time.process_time() - began
    assert latency is not None
    columns = run.log.columns()
    return seconds, {"steps": len(columns["step"]), "ttft_p95": (latency.ttft_us.p95 or 0) / 1000}


def swept(worker: SweepWorker, settings: dict[str, Any]) -> tuple[float, dict[str, Any]]:
    """The same of a replay inside a sweep."""
    began = time.process_time()
    row = worker.row(settings)
    return time.process_time() - began, dict(row)


def other(checkout: Path, trace: Path) -> list[tuple[float, dict[str, Any]]]:
    """The same of another checkout."""
    command = [sys.executable, "-c", OTHER, str(trace.resolve()), FORMULA, json.dumps(VARIANTS)]
    env = {**os.environ, "PYTHONPATH": str(checkout.resolve())}
    done = subprocess.run(command, cwd=checkout, env=env, stdout=subprocess.PIPE, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def recorded(directory: Path) -> Path:
    """A recording of the sandbox engine."""
    path = directory / "sandbox.duckdb"
    sizes = [
        "--max-num-seqs",
        "48",
        "--num-blocks",
        "1200",
        "--backlog",
        "6",
        "--max-num-batched-tokens",
        "384",
    ]
    small = ["--num-layers", "1", "--num-heads", "1", "--head-dim", "8", "--ffn-size", "16"]
    fdtrace = [sys.executable, "-m", "fdtrace"]
    engine = [*fdtrace, "sandbox", "--steps", "2000", *sizes, *small]
    subprocess.run(
        [*fdtrace, "record", "-o", str(path), "--", *engine], stdout=subprocess.DEVNULL, check=True
    )
    return path


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("trace", type=Path, nargs="?")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--other", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        trace = args.trace or recorded(Path(directory))
        measure(trace, args.rounds, args.other)


def measure(trace: Path, rounds: int, checkout: Path | None) -> None:
    source = SweepSource(trace, None, {"formula": FORMULA}, None, None, sys.executable)
    worker = SweepWorker(source)
    assert worker.recording is not None
    worker.row(VARIANTS[0])
    seconds: dict[tuple[str, int], list[float]] = {}
    for _ in range(rounds):
        others = [] if checkout is None else other(checkout, trace)
        for i, settings in enumerate(VARIANTS):
            lean, row = swept(worker, settings)
            full, figures = whole(worker.recording.value, settings)
            assert all(row[name] == figures[name] for name in figures), (row, figures)
            seconds.setdefault(("lean", i), []).append(lean)
            seconds.setdefault(("full", i), []).append(full)
            if others:
                seconds.setdefault(("other", i), []).append(others[i][0])
                for name in FIGURES:
                    assert math.isclose(row[name], others[i][1][name], rel_tol=1e-9), (name, row, others[i])
    for i, settings in enumerate(VARIANTS):
        lean = statistics.median(seconds["lean", i])
        line = f"{settings!s:35} in a sweep {lean * 1000:8.1f} ms"
        for name in ("full", "other"):
            if (name, i) in seconds:
                median = statistics.median(seconds[name, i])
                line += f"   {name} {median * 1000:8.1f} ms, {median / lean:.1f} times as long"
        print(line, flush=True)


if __name__ == "__main__":
    main()
