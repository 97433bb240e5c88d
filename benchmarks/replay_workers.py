"""From how many steps on the formulas of one replay are computed sooner by worker processes than by one process.

    python benchmarks/replay_workers.py [--steps 5000 20000 60000] [--jobs 2] [--rounds 3]

For each size a trace is simulated (32 sequences, three drafts). `fdtrace replay` then computes three formulas on it,
in one process and in several, in turns. Wall and CPU seconds are those of the whole command, medians over the rounds.
Both must print the same.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FORMULAS = ("original", "pr7499", "mine: max_num_batched_tokens - num_running_decodes * 4")
SIZES = {
    "max_num_seqs": 32, "max_num_batched_tokens": 256, "block_size": 16, "max_model_len": 1024, "num_blocks": 1800,
    "num_speculative_tokens": 3,
}  # fmt: skip
STEPS_A_REQUEST = 4


def simulated(directory: Path, num_steps: int) -> Path:
    """A trace of about so many steps."""
    chance, arrival, requests = random.Random(0), 0, []
    for i in range(num_steps // STEPS_A_REQUEST):
        arrival += chance.randint(0, 2 * STEPS_A_REQUEST)
        lengths = {"prompt": chance.randint(24, 400), "output": chance.randint(100, 400)}
        accepts = [chance.randint(0, 3) for _ in range(40)]
        requests.append({"id": f"r{i}", "arrival": arrival, **lengths, "accepts": accepts})
    case, trace = directory / f"{num_steps}.json", directory / f"{num_steps}.duckdb"
    case.write_text(json.dumps({**SIZES, "max_steps": 3 * num_steps, "requests": requests}))
    command = [sys.executable, "-m", "fdtrace", "simulate", str(case), "-f", "original", "-o", str(trace)]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return trace


def replayed(trace: Path, jobs: int) -> tuple[float, float, str]:
    """Wall and CPU seconds of one command, and what it prints."""
    options = [option for formula in FORMULAS for option in ("-f", formula)]
    command = [sys.executable, "-m", "fdtrace", "replay", str(trace), "--json", *options, "--jobs", str(jobs)]
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    printed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    took, after = time.monotonic() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    return took, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, printed


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, nargs="+", default=[5_000, 20_000, 60_000])
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        for num_steps in options.steps:
            trace = simulated(Path(directory), num_steps)
            runs = [[replayed(trace, jobs) for jobs in (1, options.jobs)] for _ in range(options.rounds)]
            assert len({printed for pair in runs for _, _, printed in pair}) == 1
            walls = [statistics.median(pair[i][0] for pair in runs) for i in (0, 1)]
            cpus = [statistics.median(pair[i][1] for pair in runs) for i in (0, 1)]
            found = {
                "steps": json.loads(runs[0][0][2])["formulas"][1]["num_steps"],
                "jobs": options.jobs,
                "one_process_s": round(walls[0], 2),
                "several_s": round(walls[1], 2),
                "times_as_fast": round(walls[0] / walls[1], 2),
                "one_process_cpu_s": round(cpus[0], 2),
                "several_cpu_s": round(cpus[1], 2),
            }
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
