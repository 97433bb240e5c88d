"""What the hooks add to FastDeploy's real `schedule()` and `execute_model()`, as a ratio, at 32, 128 and 256 requests.

    FASTDEPLOY_SRC=CHECKOUT LAB_DIR=DIR python benchmarks/fastdeploy_hook.py [--steps N] [--drafts K]

Run it by a Python that has what FastDeploy's scheduler imports; it needs nothing else of fdtrace's. LAB_DIR holds
fastdeploy_lab.py, which drives FastDeploy's own classes and plays the forward alone. The same engine steps on, its
methods hooked in seven steps and not in the next seven, so that both are measured on the same requests in one run. One
request in sixty leaves in each step, and another comes with a prefill.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), os.environ.get("LAB_DIR", ".")]

import fastdeploy_lab as lab  # noqa: E402

from fdtrace.recorder.agent import load, ring, wire  # noqa: E402

COUNTS = (32, 128, 256)

BLOCK = 7
"""Steps with the hooks, and as many without: no period of the load follows that."""


class Toggle:
    """The agent, recording into a ring that nobody reads, and its hooks in place or not."""

    def __init__(self, directory: str) -> None:
        arm: Any = load.load(load.read_sources(str(ROOT / "recorder" / "agent")))
        self.agent = arm.Agent(keep_hooks=True)
        self.agent.install()
        self.agent.attend()
        self.agent.start(
            {
                "id": "benchmark",
                "dir": directory,
                "segments": ring.DEFAULT_SEGMENTS,
                "segment_size": ring.DEFAULT_SEGMENT_SIZE,
                "protocol": wire.PROTOCOL,
            }
        )

    def hook(self, on: bool) -> None:
        """Put the wrappers in place, or FastDeploy's own methods."""
        for done in self.agent.installed:
            setattr(done.owner, done.hook.method, done.wrapper if on else done.original)
        for adapter in self.agent.adapters:
            order = getattr(adapter, "order", None)
            if order is not None and order.manager is not None:
                order.manager.lock = order.stand_in if on else order.stand_in.lock

    def end(self) -> None:
        """Record no more."""
        if self.agent.problem:
            raise SystemExit(f"the agent switched itself off: {self.agent.problem}")
        self.agent.stop("end")
        self.hook(False)


def spin(seconds: float) -> None:
    """Take so long, without giving the core away."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


class Engine:
    """The lab's engine with `count` requests running, its forward timed; the model takes `forward_ms`."""

    def __init__(self, count: int, drafts: int, forward_ms: float) -> None:
        case = {
            "max_num_seqs": count,
            "num_blocks": 40 * count,
            "max_num_batched_tokens": 8192,
            "num_speculative_tokens": drafts,
            "spec_method": "ngram",
            "worker": "inline",
        }
        self.worker = lab.Worker(lab.build_manager(case), case)
        self.count, self.made, self.forward_ns = count, 0, 0
        run = self.worker.forward.run
        played = type(self.worker.forward.runner)

        def play(runner: Any, inputs: Any) -> Any:
            spin(forward_ms / 1000 if inputs else 0)
            return inputs

        played._execute = play

        def timed(*arguments: Any) -> None:
            begun = time.perf_counter_ns()
            run(*arguments)
            self.forward_ns = time.perf_counter_ns() - begun

        self.worker.forward.run = timed
        self.drafts = drafts

    def step(self) -> tuple[float, float]:
        """Microseconds of `schedule()` and of the forward, both as the engine sees them."""
        manager = self.worker.manager
        while len(manager.running) + len(manager.waiting) < self.count:
            output = 60 * (1 + self.drafts // 2)
            spec = {"id": f"r{self.made}", "prompt": 300, "output": output, "accepts": [self.drafts // 2]}
            self.worker.add(spec)
            self.made += 1
        return self.worker.step()["schedule_ns"] / 1000, self.forward_ns / 1000


def measure(count: int, steps: int, drafts: int, forward_ms: float) -> dict[str, list[list[float]]]:
    """For `schedule` and `execute_model`: microseconds without the hooks, and with them."""
    times: dict[str, list[list[float]]] = {"schedule": [[], []], "execute_model": [[], []]}
    with tempfile.TemporaryDirectory() as directory:
        engine = Engine(count, drafts, forward_ms)
        toggle = Toggle(directory)
        for step in range(2 * steps + 60):
            # What changed while the hooks were off is told anew in the first hooked step: it is not counted.
            on = step // BLOCK % 2
            toggle.hook(bool(on))
            scheduled, forward = engine.step()
            if step >= 60 and step % BLOCK:
                times["schedule"][on].append(scheduled)
                times["execute_model"][on].append(forward)
        toggle.end()
    return times


def main() -> None:
    """Print a line for each method and count."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--drafts", type=int, default=4)
    parser.add_argument(
        "--forward-ms",
        type=float,
        default=5,
        help="what the played model takes; 0: the runner's own host code alone",
    )
    options = parser.parse_args()
    print(
        "method          requests   plain us   hooked us   adds us   ratio   (medians; ratio of 20th percentiles)"
    )
    for count in COUNTS:
        for method, (plain, hooked) in measure(
            count, options.steps, options.drafts, options.forward_ms
        ).items():
            middle = [statistics.median(values) for values in (plain, hooked)]
            fifth = [statistics.quantiles(values, n=5)[0] for values in (plain, hooked)]
            print(
                f"{method:15} {count:8d} {middle[0]:10.1f} {middle[1]:11.1f} {middle[1] - middle[0]:9.1f} "
                f"{middle[1] / middle[0]:7.3f}   ({fifth[1] / fifth[0]:.3f})",
                flush=True,
            )


if __name__ == "__main__":
    main()
