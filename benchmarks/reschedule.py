"""Speed of rescheduling: steps a second at many running requests, and how time and memory grow with the steps.

    python benchmarks/reschedule.py [--steps 10000 100000 1000000] [--running 128] [--formula pr7499 original]

The work is seeded: as many requests come as finish, so that about as many wait as run, with speculation (K 4, 60 %
accepted). One core; seconds are of CPU. Each size runs in a process of its own, so that its peak memory is its own.

Beside it, on the first `--real-steps` of the same work in the same run:
- FASTDEPLOY_SRC (and FASTDEPLOY_PYTHON): the real scheduler of a checkout, its own CPU time alone;
- VIDUR_PYTHON: a Python with microsoft/vidur (`pip install vidur`), its Sarathi replica scheduler, which chunks
  prefills too. It knows no speculation: a decode takes as many steps, one token each.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fdtrace.replayer.config import SchedulerConfig, parse_policy
from fdtrace.replayer.formulas import parse_formula
from fdtrace.replayer.replay.workload_replay import Replay
from fdtrace.replayer.workload.request_columns import RequestColumns
from fdtrace.replayer.workload.workload import Workload, WorkRequest
from fdtrace.scheduler_option import given_schedulers

DRAFTS, ACCEPTED = 4, 0.6
STEPS_A_REQUEST = 123
"""Steps that a request holds a slot for, prefill and all."""


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
    """Requests for about `num_steps` steps at `running` sequences; twice as many as run are there at once."""
    rng = random.Random(seed)
    config = SchedulerConfig(
        max_num_batched_tokens=running * (DRAFTS + 1) + 1024,
        max_num_seqs=running,
        num_blocks=running * 40,
        num_speculative_tokens=DRAFTS,
        spec_method="mtp",
        max_model_len=8192,
    )
    requests = RequestColumns(coming(rng, num_steps, running))
    return Workload(config, requests, max_steps=num_steps, expected_steps=num_steps)


def coming(rng: random.Random, num_steps: int, running: int) -> Iterator[WorkRequest]:
    """The requests, in order of arrival."""
    count = int(num_steps * running / STEPS_A_REQUEST)
    for i in range(count + 2 * running):
        output = rng.randint(100, 450)
        arrival = max(0, i - 2 * running) * num_steps // max(count, 1)
        prompt = rng.randint(50, 1500)
        taken = np.array(accepts(rng, output), dtype=np.uint8)
        yield WorkRequest(f"r{i}", arrival, prompt, output, taken)


def told(what: str, run: Replay, seconds: float, **more: object) -> dict[str, object]:
    """A run's figures."""
    columns = run.log.columns()
    return {
        "scheduler": what,
        "steps": run.log.num_steps,
        "mean_running": round(float(columns["num_running"].mean()), 1),
        "mean_waiting": round(float(columns["num_waiting"].mean()), 1),
        "cpu_seconds": round(seconds, 3),
        "steps_per_s": round(run.log.num_steps / seconds),
        "us_per_step": round(seconds / run.log.num_steps * 1e6, 1),
        **more,
    }


def measure(work: Workload, formula: str, policy: str) -> dict[str, object]:
    """One replay by the model."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    run = Replay(work, parse_formula(formula), parse_policy(policy))
    began = time.process_time()
    run.run()
    seconds = time.process_time() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return told(formula, run, seconds, policy=policy, work_mib=before, peak_mib=peak)


def measure_real(work: Workload, source: str, python: str) -> dict[str, object]:
    """The same work by the real scheduler: what its own code took, the played forward left out."""
    (given,) = given_schedulers([f"fastdeploy={source}"], python)
    with given.open(work.config, {}) as driven:
        run = Replay(work, driven)
        run.run()
        return told(given.name, run, driven.scheduler_ns / 1e9)


def measure_vidur(work: Workload, python: str) -> dict[str, object]:
    """The same arrivals, prompts and decode steps by vidur's scheduler."""
    config = work.config
    message = {
        "max_num_seqs": config.max_num_seqs,
        "num_blocks": config.num_blocks,
        "block_size": config.block_size,
        "chunk_size": config.max_num_batched_tokens,
        "max_tokens": config.max_model_len,
        "steps": work.max_steps,
        "requests": [(r.arrival, r.num_prompt_tokens, len(r.accepts) + 1) for r in work.requests],
    }
    script = Path(__file__).with_name("vidur_scheduler.py")
    done = subprocess.run(
        [python, str(script)], input=json.dumps(message), capture_output=True, text=True, check=False
    )
    if done.returncode:
        return {"scheduler": "vidur", "failed": done.stderr.strip().splitlines()[-1:]}
    found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return found


def alone(options: argparse.Namespace, num_steps: int) -> None:
    """One size in a process of its own."""
    arguments = ["--steps", str(num_steps), "--running", str(options.running), "--policy", options.policy]
    command = [sys.executable, __file__, "--one", *arguments, "--formula", *options.formula]
    subprocess.run(command, check=True)


def beside(options: argparse.Namespace) -> None:
    """The others, and the model on the same steps, in one run."""
    work = workload(options.real_steps, options.running)
    found = [measure(work, options.formula[0], options.policy)]
    if source := os.environ.get("FASTDEPLOY_SRC"):
        found.append(measure_real(work, source, os.environ.get("FASTDEPLOY_PYTHON", sys.executable)))
    if python := os.environ.get("VIDUR_PYTHON"):
        found.append(measure_vidur(work, python))
    for one in found:
        if "us_per_step" in one and one is not found[0]:
            one["model_is_faster"] = round(
                float(str(one["us_per_step"])) / float(str(found[0]["us_per_step"])), 1
            )
        print(json.dumps(one), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--running", type=int, default=128)
    parser.add_argument("--formula", nargs="+", default=["pr7499", "original"])
    parser.add_argument("--policy", default="original")
    parser.add_argument("--real-steps", type=int, default=5_000, help="steps of the comparison with others")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        work = workload(options.steps[0], options.running)
        for formula in options.formula:
            print(json.dumps(measure(work, formula, options.policy)), flush=True)
        return
    for num_steps in options.steps:
        alone(options, num_steps)
    beside(options)


if __name__ == "__main__":
    main()
