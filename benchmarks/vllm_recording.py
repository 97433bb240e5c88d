"""What recording costs a real `vllm serve`: throughput and inter-token latency, with and without, side by side.

    VLLM_PYTHON=… python benchmarks/vllm_recording.py [--rounds 8] [--requests 120]

Each pair of rounds sends the same requests; which of the two is recorded first changes from pair to pair. Attaching
and detaching lie outside the rounds. The ratios are medians over the pairs.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
from pathlib import Path
from typing import Any

import vllm_load as load
from vllm_server import SPECULATION, Server, attach, detach, make_model, report


def one_round(server: Server, trace: Path | None, requests: int, seed: int) -> dict[str, Any]:
    """One load, recorded to `trace` or not."""
    process = attach(server.pid, trace) if trace is not None else None
    answers = asyncio.run(load.load(server.port, requests=requests, concurrency=16, seed=seed))
    if process is not None:
        detach(process)
    return load.summary(answers)


def main() -> None:
    """Run the pairs and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--requests", type=int, default=120)
    args = parser.parse_args()
    ratios: dict[str, list[float]] = {"tokens_per_s": [], "itl_p50_ms": [], "itl_p99_ms": []}
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        with Server(make_model(directory / "model"), *SPECULATION) as server:
            server.wait()
            one_round(server, None, args.requests, 0)
            for number in range(args.rounds):
                pair: dict[bool, dict[str, Any]] = {}
                for recording in (bool(number % 2), not number % 2):
                    trace = directory / f"{number}.duckdb" if recording else None
                    pair[recording] = one_round(server, trace, args.requests, 100 + number)
                    report("recorded" if recording else "not recorded", pair[recording])
                for key, values in ratios.items():
                    values.append(pair[True][key] / pair[False][key])
    for key, values in ratios.items():
        told = {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}
        report(f"ratio of {key}", told)


if __name__ == "__main__":
    main()
