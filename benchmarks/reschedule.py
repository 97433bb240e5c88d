"""Speed of rescheduling: steps a second at many running requests, and how time and memory grow with the
steps.

    python benchmarks/reschedule.py [--steps 10000 100000] [--running 128] [--formula pr7499 original]
    [--as-recorded]

The work is seeded: requests arrive so that the waiting queue never runs dry, with speculation (K 4, 60 %
accepted).
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import sys
import time
from dataclasses import replace

import numpy as np

from replayer.config import SchedulerConfig, parse_policy
from replayer.formulas import parse_formula
from replayer.reschedule import Replay
from replayer.workload import Workload, WorkRequest

DRAFTS, ACCEPTED = 4, 0.6
MEAN_STEPS = 110
"""Steps that a request decodes for, about; with its prefill it holds a slot a little longer."""


def accepts(rng: random.Random, output: int) -> list[int]:
    """Accepted drafts of each decode forward, enough for `output` tokens."""
    made, taken = 1, []
    while made < output:
        n = 0
        while n < DRAFTS and rng.random() < ACCEPTED:
            n += 1
        taken.append(n)
        made += 1 + n
    return taken


def workload(num_steps: int, running: int, seed: int = 0) -> Workload:
    """Requests for about `num_steps` steps at `running` sequences."""
    rng = random.Random(seed)
    config = SchedulerConfig(
        max_num_batched_tokens=running * (DRAFTS + 1) + 1024,
        max_num_seqs=running,
        num_blocks=running * 40,
        num_speculative_tokens=DRAFTS,
        spec_method="mtp",
        max_model_len=8192,
    )
    count = int(num_steps * running / MEAN_STEPS * 1.3)
    requests = []
    for i in range(count):
        output = rng.randint(100, 450)
        arrival = int(i / count * num_steps * 0.95)
        prompt = rng.randint(50, 1500)
        requests.append(
            WorkRequest(f"r{i}", arrival, prompt, output, np.array(accepts(rng, output), dtype=np.int16))
        )
    return Workload(config, tuple(requests), max_steps=num_steps, expected_steps=num_steps)


def measure(work: Workload, formula: str, policy: str) -> dict[str, object]:
    """One replay: its speed and what ran."""
    run = Replay(work, parse_formula(formula), parse_policy(policy))
    began = time.process_time()
    run.run()
    seconds = time.process_time() - began
    columns = run.tape.columns()
    return {
        "formula": formula,
        "policy": policy,
        "steps": run.tape.num_steps,
        "mean_running": round(float(columns["num_running"].mean()), 1),
        "cpu_seconds": round(seconds, 3),
        "steps_per_s": round(run.tape.num_steps / seconds),
        "us_per_step": round(seconds / run.tape.num_steps * 1e6, 1),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--running", type=int, default=128)
    parser.add_argument("--formula", nargs="+", default=["pr7499", "original"])
    parser.add_argument("--policy", default="original")
    options = parser.parse_args()
    for num_steps in options.steps:
        work = workload(num_steps, options.running)
        for formula in options.formula:
            print(json.dumps(measure(replace(work), formula, options.policy)))
            sys.stdout.flush()


if __name__ == "__main__":
    main()
