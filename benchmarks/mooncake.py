"""How long it takes to replay 1,000 requests in Mooncake's format under six settings, on two processes.

    python benchmarks/mooncake.py [--requests 1000] [--trace FILE.jsonl] [--processes 2]

Mooncake's public traces have a request a line: `timestamp` (ms), `input_length`, `output_length` (tokens) and
`hash_ids`, one for each 512 tokens of the prompt; equal ids mean equal blocks. Without --trace, one of that shape is
drawn from a seed: sessions whose prompts grow by each answer, long prompts, short outputs. The steps take what a
formula in the shape of a GPU says, so requests come by time and latencies come out.

SCHED_SIM names the `sched-sim` of an environment that has it (`pip install sched-sim`): it then simulates the same
requests, one setting, in the same run. AISimulate's package on PyPI downloads its code from another index when it is
built; where that index cannot be reached it does not install, and it is not measured here.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import tempfile
import time
from collections.abc import Hashable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from fdtrace.recorder.trace.column_values import Floats
from fdtrace.replayer.analysis.token_times import replayed_latencies
from fdtrace.replayer.config import SchedulerConfig
from fdtrace.replayer.formulas import parse_formula
from fdtrace.replayer.recorded.step_durations import Clock
from fdtrace.replayer.recorded.time_forms import TimeForm
from fdtrace.replayer.recorded.time_model import HeldOutErrors, TimeModel
from fdtrace.replayer.replay.workload_replay import Replay
from fdtrace.replayer.workload.workload import BlockKey, Workload, WorkRequest

HASHED = 512
"""Tokens of a block of `hash_ids`."""
BLOCK = 64
SIZES: dict[str, Any] = {"max_num_batched_tokens": 8192, "max_num_seqs": 256, "num_blocks": 8000}
VARIANTS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "budget 4096": {"max_num_batched_tokens": 4096},
    "budget 16384": {"max_num_batched_tokens": 16384},
    "seqs 64": {"max_num_seqs": 64},
    "half the blocks": {"num_blocks": 4000},
    "no prefix cache": {"prefix_caching": False},
}


class GpuShape(TimeForm):
    """The memory or the arithmetic, whichever takes longer."""

    @property
    def name(self) -> str:
        """Its name."""
        return "gpu"

    def us(self, features: Floats) -> Floats:
        """Microseconds of each row of features."""
        prefill, _, decode, kv, attention = features.T
        memory, arithmetic = 12_000 + 0.02 * kv, 45 * (prefill + decode) + 0.000_5 * attention
        found: Floats = 4_000 + memory.clip(min=arithmetic)
        return found


def drawn(count: int, seed: int = 1) -> Iterator[dict[str, Any]]:
    """Requests in Mooncake's format: a third goes on with a session, whose prompt is the last one and its answer."""
    rng = random.Random(seed)
    at, fresh = 0.0, 0
    sessions: list[tuple[list[int], int]] = []
    for _ in range(count):
        at += rng.expovariate(1 / 300)
        if sessions and rng.random() < 0.35:
            ids, length = sessions[rng.randrange(max(0, len(sessions) - 40), len(sessions))]
            length += rng.randint(100, 3000)
        else:
            ids, length = [0], int(min(60_000, rng.lognormvariate(8.6, 0.9))) + HASHED
        blocks = -(-length // HASHED)
        more = blocks - len(ids)
        ids = [*ids, *range(fresh + 1, fresh + 1 + more)]
        fresh += max(0, more)
        output = max(1, int(rng.lognormvariate(4.9, 0.8)))
        sessions.append((ids, length))
        yield {
            "timestamp": round(at),
            "input_length": length,
            "output_length": output,
            "hash_ids": ids[:blocks],
        }


def workload(lines: list[dict[str, Any]], changed: dict[str, Any]) -> Workload:
    """The requests by time on an engine with these sizes."""
    config = SchedulerConfig(
        **{"block_size": BLOCK, "max_model_len": 131_072, "prefix_caching": True, **SIZES, **changed}
    )
    requests = tuple(
        WorkRequest(
            f"m{i}",
            int(line["timestamp"]) * 1000,
            int(line["input_length"]),
            int(line["output_length"]),
            block_key=_key(i, line["hash_ids"]) if config.prefix_caching else None,
        )
        for i, line in enumerate(lines)
    )
    nothing = HeldOutErrors("", 0, 0.0, 0.0)
    model = TimeModel(GpuShape(), 0, 0.0, 0.0, (), (), nothing, (1e12,) * 5)
    return Workload(config, requests, max_steps=10_000_000, clock=Clock("time", None, model))


def _key(number: int, ids: list[int]) -> BlockKey:
    """The content of the blocks of a prompt, as its ids say; those of its output are its own."""
    parts = HASHED // BLOCK

    def key(block: int) -> Hashable:
        return (ids[block // parts], block % parts) if block < parts * len(ids) else (number, -block)

    return key


def replayed(lines: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """One variant: its figures, and the CPU seconds that it took."""
    began = time.process_time()
    run = Replay(workload(lines, VARIANTS[name]), parse_formula("pr7499"))
    run.run()
    latency = replayed_latencies(run, {})
    assert latency is not None
    seconds = time.process_time() - began
    columns = run.log.columns()
    return {
        "variant": name,
        "steps": run.log.num_steps,
        "prefill_tokens": int(columns["num_prefill_tokens"].sum()),
        "preempted": int(columns["num_preempted"].sum()),
        "unfinished": run.num_unfinished,
        "ttft_ms_p50": round((latency.ttft_us.p50 or 0) / 1e3, 1),
        "ttft_ms_p95": round((latency.ttft_us.p95 or 0) / 1e3, 1),
        "cpu_seconds": round(seconds, 2),
        "us_per_step": round(seconds / run.log.num_steps * 1e6, 1),
    }


def by_sched_sim(lines: list[dict[str, Any]], command: str) -> dict[str, Any]:
    """The same requests by sched-sim's chunked scheduler with its prefix cache: wall seconds of its command."""
    requests = [
        {
            "id": f"m{i}",
            "timestamp": line["timestamp"] / 1000,
            "prompt_tokens": line["input_length"],
            "output_tokens": line["output_length"],
        }
        for i, line in enumerate(lines)
    ]
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(requests, file)
        file.flush()
        options = ["--token-budget", "8192", "--no-gantt"]
        began = time.perf_counter()
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
        done = subprocess.run(
            [command, "trace", file.name, *options], capture_output=True, text=True, check=False, timeout=900
        )
        seconds = time.perf_counter() - began
        cpu = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
    if done.returncode:
        return {"tool": "sched-sim", "failed": done.stderr.strip()[-300:]}
    return {
        "tool": "sched-sim, one setting",
        "cpu_seconds": round(cpu, 2),
        "wall_seconds": round(seconds, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--trace", type=Path)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--write", type=Path, help="write the drawn requests here")
    options = parser.parse_args()
    if options.trace is None:
        lines = list(drawn(options.requests))
    else:
        text = options.trace.read_text().splitlines()
        lines = [json.loads(line) for line in text[: options.requests]]
    if options.write is not None:
        options.write.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    began = time.perf_counter()
    with ProcessPoolExecutor(options.processes) as pool:
        for found in pool.map(replayed, [lines] * len(VARIANTS), VARIANTS):
            print(json.dumps(found), flush=True)
    wall = time.perf_counter() - began
    print(json.dumps({"requests": len(lines), "variants": len(VARIANTS), "wall_seconds": round(wall, 2)}))
    if command := os.environ.get("SCHED_SIM"):
        print(json.dumps(by_sched_sim(lines, command)))


if __name__ == "__main__":
    main()
