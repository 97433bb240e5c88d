"""What the hooks add to FastDeploy's real `schedule()` and `execute_model()`, as a ratio, at 32, 128 and 256 requests.

    FASTDEPLOY_SRC=CHECKOUT LAB_DIR=DIR python benchmarks/fastdeploy_hook.py [--steps N] [--drafts K] [--beside DIR]

Run it by a Python that has what FastDeploy's scheduler imports; it needs nothing else of fdtrace's. LAB_DIR holds
fastdeploy_lab.py, which drives FastDeploy's own classes and plays the forward alone. The same engine steps on, its
methods hooked in seven steps and not in the next seven, so that both are measured on the same requests in one run. One
request in sixty leaves in each step, and another comes with a prefill. `--beside` names another checkout of fdtrace,
whose agent takes its turn too: what recording cost before a change, and after it. The turns come in one order and then
in the other, so that the steps without an agent's hooks before its turn are the same for both.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), os.environ.get("LAB_DIR", ".")]

import fastdeploy_lab as lab  # noqa: E402

from fdtrace.recorder.agent import ring  # noqa: E402

COUNTS = (32, 128, 256)

BLOCK = 7
"""Steps with the hooks, and as many without."""

LIFE = 60
"""Forwards in which a request decodes. The first requests live shorter, each another time: if all came at once, all
would leave at once, LIFE steps later and again, and that may be always in the turn of the same agent."""


class Toggle:
    """An agent, recording into a ring that nobody reads, and its hooks in place or not."""

    def __init__(self, checkout: Path, directory: str, number: int) -> None:
        source = checkout / "recorder" / "agent"
        loader: dict[str, Any] = {}
        exec(compile((source / "load.py").read_text(), "load.py", "exec"), loader)
        loader["NAME"] = f"_fdtrace_agent_{number}"
        arm = loader["load"](loader["read_sources"](str(source)))
        package = sys.modules[loader["NAME"]]
        try:
            self.agent = arm.Agent(keep_hooks=True)
        except TypeError:  # an earlier one always kept them
            self.agent = arm.Agent()
        self.agent.install()
        if hasattr(self.agent, "attend"):
            self.agent.attend()
        self.agent.start(
            {
                "id": "benchmark",
                "dir": directory,
                "segments": ring.DEFAULT_SEGMENTS,
                "segment_size": ring.DEFAULT_SEGMENT_SIZE,
                "protocol": package.wire.PROTOCOL,
            }
        )
        self.hook(False)

    def hook(self, on: bool) -> None:
        """Put the wrappers in place, or FastDeploy's own methods."""
        for done in self.agent.installed:
            setattr(done.owner, done.hook.method, done.wrapper if on else done.original)
        for adapter in self.agent.adapters:
            order = getattr(adapter, "order", None)
            if order is not None and order.manager is not None:
                order.manager.lock = order.stand_in if on else order.stand_in.lock
                if on:  # a recording knows every request: if an unknown one leaves, the order names the whole queue
                    for request in list(order.manager.requests.values()):
                        order.introduce(request)

    def position(self) -> tuple[int, int]:
        """The segment of the ring that is written, and the bytes that are written of it."""
        at = self.agent.writer.ring
        return int(at.lap), int(at.offset)

    def end(self) -> None:
        """Record no more."""
        if self.agent.problem:
            raise SystemExit(f"the agent switched itself off: {self.agent.problem}")
        self.hook(True)
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
            steps = LIFE if self.made >= self.count else 1 + LIFE * (self.made + 1) // self.count
            output = steps * (1 + self.drafts // 2)
            spec = {"id": f"r{self.made}", "prompt": 300, "output": output, "accepts": [self.drafts // 2]}
            self.worker.add(spec)
            self.made += 1
        return self.worker.step()["schedule_ns"] / 1000, self.forward_ns / 1000


METHODS = ("schedule", "execute_model")


def turn(step: int, num_agents: int) -> int:
    """Whose turn a step is: 0 without hooks, or an agent's number from 1. Every second round has the other order."""
    rounds, place = divmod(step // BLOCK, 1 + num_agents)
    return place if rounds % 2 == 0 or place == 0 else 1 + num_agents - place


def measure(
    count: int, steps: int, drafts: int, forward_ms: float, checkouts: list[Path]
) -> tuple[dict[str, list[list[float]]], list[float]]:
    """For each method, microseconds without hooks and with those of each checkout; bytes a step of each."""
    times: dict[str, list[list[float]]] = {
        method: [[] for _ in range(1 + len(checkouts))] for method in METHODS
    }
    written, counted = [0] * len(checkouts), [0] * len(checkouts)
    with ExitStack() as stack:
        engine = Engine(count, drafts, forward_ms)
        directories = [stack.enter_context(tempfile.TemporaryDirectory()) for _ in checkouts]
        toggles = [Toggle(*one) for one in zip(checkouts, directories, range(len(checkouts)), strict=True)]
        for step in range((1 + len(checkouts)) * steps + 60):
            # What changed while the hooks were off is told anew in the first hooked step: it is not counted.
            on = turn(step, len(checkouts))
            if not step % BLOCK:
                for at, toggle in enumerate(toggles):
                    if at + 1 != on:
                        toggle.hook(False)
                for at, toggle in enumerate(toggles):
                    if at + 1 == on:
                        toggle.hook(True)
            lap, before = toggles[on - 1].position() if on else (0, 0)
            scheduled, forward = engine.step()
            if step < 60 or not step % BLOCK:
                continue
            times["schedule"][on].append(scheduled)
            times["execute_model"][on].append(forward)
            if on:
                lap_now, now = toggles[on - 1].position()
                if lap_now == lap:  # else it also left a segment and wrote its whole state
                    written[on - 1] += now - before
                    counted[on - 1] += 1
        for toggle in toggles:
            toggle.end()
    return times, [total / max(number, 1) for total, number in zip(written, counted, strict=True)]


def main() -> None:
    """Print a line for each method, count and checkout."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--drafts", type=int, default=4)
    parser.add_argument("--beside", type=Path, metavar="DIR", help="another checkout of fdtrace")
    parser.add_argument(
        "--count", type=int, action="append", help="requests that run (default: 32, 128, 256)"
    )
    parser.add_argument(
        "--forward-ms",
        type=float,
        default=5,
        help="what the played model takes; 0: the runner's own host code alone",
    )
    options = parser.parse_args()
    checkouts = [*([options.beside] if options.beside else []), ROOT]
    names = ["beside", "this"][-len(checkouts) :]
    print(
        "method         agent   requests  plain us  hooked us  adds us (20th perc.)  ratio (20th perc.)  bytes a step"
    )
    for count in options.count or COUNTS:
        times, written = measure(count, options.steps, options.drafts, options.forward_ms, checkouts)
        for method, (plain, *hooked) in times.items():
            for name, with_hooks, size in zip(names, hooked, written, strict=True):
                print(line(f"{method:14} {name:6} {count:9d}", plain, with_hooks, size), flush=True)


def line(head: str, plain: list[float], hooked: list[float], size: float) -> str:
    """Medians and 20th percentiles, in words."""
    middle = [statistics.median(values) for values in (plain, hooked)]
    fifth = [statistics.quantiles(values, n=5)[0] for values in (plain, hooked)]
    return (
        f"{head} {middle[0]:9.1f} {middle[1]:10.1f} {middle[1] - middle[0]:8.1f} ({fifth[1] - fifth[0]:7.1f})"
        f"     {middle[1] / middle[0]:7.3f} ({fifth[1] / fifth[0]:.3f}) {size:12.0f}"
    )


if __name__ == "__main__":
    main()
