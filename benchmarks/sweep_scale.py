"""How long a sweep of many variants takes on one core, on two, and on two nodes of Ray; and that the answers are equal.

    python benchmarks/sweep_scale.py [TRACE] [--variants 500] [--pieces 1] [--only one two ray]

TRACE is a recording of FastDeploy or of the sandbox with times. Without it, one of 10,000 steps is simulated: 32
sequences, three drafts, 2,500 requests; its steps take as long as a sum of their tokens and KV tokens says, with noise.
Seconds are of the wall, without the reading of the trace and, on Ray, without the start of the cluster (its two nodes
are processes of this machine with one processor each). With --pieces, so many parts of the variants are measured, each
place after the other, so that all meet the same disturbances. Each place must give the same figures.
"""

from __future__ import annotations

import argparse
import importlib
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import duckdb

from fdtrace.searching.sweep_on_ray import RayCluster
from fdtrace.searching.sweep_places import ManyProcesses, OneProcess, SweepPlace
from fdtrace.searching.sweeping import SweepSource, SweepWorker

FORMULA = "pr7499"
SIZES = {
    "max_num_seqs": 32, "max_num_batched_tokens": 256, "block_size": 16, "max_model_len": 1024, "num_blocks": 1800,
    "num_speculative_tokens": 3, "max_steps": 30_000,
}  # fmt: skip
TIMES = """
CREATE TEMP TABLE took AS SELECT step, 9000 + 31 * num_prefill_tokens + 45 * num_decode_tokens
    + 0.4 * (SELECT sum(r.num_computed_tokens) FROM step_request r WHERE r.step = s.step) AS us FROM step s;
CREATE TEMP TABLE began AS SELECT step, make_timestamp_ns((1790000000000000000 + 1000 * coalesce(
    sum(us * (0.97 + 0.06 * (hash(step) % 1000) / 1000))
    OVER (ORDER BY step ROWS UNBOUNDED PRECEDING EXCLUDE CURRENT ROW), 0))::BIGINT) AS ts FROM took;
UPDATE step SET ts = began.ts, schedule_us = 100, forward_us = 5000 FROM began WHERE began.step = step.step;
UPDATE request SET arrived_at = began.ts FROM began WHERE began.step = arrived_step;
"""
STORE = 200 * 2**20
PLACES = ("one", "two", "ray")


def grid(count: int) -> list[dict[str, Any]]:
    """Combinations of two settings: 20 limits, and as many numbers of sequences as it takes."""
    return [
        {"max_num_seqs": 8 + i // 20, "max_num_batched_tokens": 128 + 32 * (i % 20)} for i in range(count)
    ]


def simulated(directory: Path) -> Path:
    """A trace of a simulation of about 10,000 steps, with times."""
    chance, arrival, requests = random.Random(0), 0, []
    for i in range(2500):
        arrival += chance.randint(0, 8)
        lengths = {"prompt": chance.randint(24, 400), "output": chance.randint(100, 400)}
        accepts = [chance.randint(0, 3) for _ in range(40)]
        requests.append({"id": f"r{i}", "arrival": arrival, **lengths, "accepts": accepts})
    case, trace = directory / "case.json", directory / "simulated.duckdb"
    case.write_text(json.dumps({**SIZES, "requests": requests}))
    command = [sys.executable, "-m", "fdtrace", "simulate", str(case), "-f", "original", "-o", str(trace)]
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    with duckdb.connect(str(trace)) as db:
        db.execute(TIMES)
    return trace


@contextmanager
def cluster() -> Iterator[None]:
    """A Ray cluster of two nodes; this process is connected to it."""
    ray = importlib.import_module("ray")
    options = {"num_cpus": 1, "object_store_memory": STORE, "include_dashboard": False}
    nodes = importlib.import_module("ray.cluster_utils").Cluster(initialize_head=True, head_node_args=options)
    nodes.add_node(num_cpus=1, object_store_memory=STORE)
    ray.init(address=nodes.address, log_to_driver=False, logging_level="error")
    try:
        yield
    finally:
        ray.shutdown()
        nodes.shutdown()


def measured(place: SweepPlace, combinations: Sequence[dict[str, Any]]) -> tuple[float, list[Any]]:
    """Seconds and rows of some combinations."""
    began = time.monotonic()
    rows = dict(place.rows(combinations))
    return time.monotonic() - began, [rows[i] for i in range(len(combinations))]


def warm(place: SweepPlace, jobs: int) -> None:
    """Let each process read the trace and fit the time model."""
    list(place.rows(grid(2 * jobs)))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("trace", type=Path, nargs="?")
    parser.add_argument("--variants", type=int, default=500)
    parser.add_argument("--pieces", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=PLACES, default=list(PLACES))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        trace = args.trace or simulated(Path(directory))
        worker = SweepWorker(SweepSource(trace, None, {"formula": FORMULA}, None, None, sys.executable))
        with cluster() if "ray" in args.only else nullcontext():
            compare(args, worker)


def compare(args: argparse.Namespace, worker: SweepWorker) -> None:
    combinations = grid(args.variants)
    seconds, answers = dict.fromkeys(args.only, 0.0), {name: list[Any]() for name in args.only}
    places: dict[str, Any] = {"one": OneProcess(worker)}
    if "two" in args.only:
        places["two"] = ManyProcesses([worker.source], 2)
    if "ray" in args.only:
        places["ray"] = RayCluster(worker, None)
    for name in args.only:
        warm(places[name], 1 if name == "one" else 2)
    size = -(-len(combinations) // args.pieces)
    for start in range(0, len(combinations), size):
        for name in args.only:
            took, rows = measured(places[name], combinations[start : start + size])
            seconds[name] += took
            answers[name] += rows
            print(
                f"{name}: {len(answers[name])} variants, {seconds[name]:.1f} s", file=sys.stderr, flush=True
            )
    for place in places.values():
        place.__exit__(None, None, None)
    first = args.only[0]
    for name in args.only:
        same = "the same figures" if answers[name] == answers[first] else "OTHER FIGURES"
        print(
            f"{name:4} {seconds[name]:8.1f} s, {seconds[name] / len(combinations) * 1000:7.1f} ms a variant, "
            f"{seconds[first] / seconds[name]:.2f} times as fast as {first}; {same}"
        )


if __name__ == "__main__":
    main()
