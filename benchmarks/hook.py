"""What the hook adds to a step, in microseconds, at 1, 32, 128 and 256 running requests, warm and cold.

    python benchmarks/hook.py [--steps N]

The sandbox's own classes with canned results, so that what is timed is the wrapper, the adapter and the ring, called as
an engine calls them: add_request, schedule, execute_model, finish_request. Every step has decodes of all running
requests and new blocks for one in twenty; every eighth a request finishes and another comes with a prefill chunk. The
same steps run with and without the hook, in turn; the difference of their 20th percentiles and of their medians is
what the hook adds. Cold: 48 MB are swept before each step, which is nearer to a real engine, whose forward evicts all.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from fdtrace.recorder import delivery
from fdtrace.recorder.agent import load, ring, wire
from fdtrace.sandbox import runner as runner_module
from fdtrace.sandbox import sandbox_scheduler as scheduler_module
from fdtrace.sandbox.engine_config import EngineConfig
from fdtrace.sandbox.framework import FrameworkMemory
from fdtrace.sandbox.sandbox_request import SandboxRequest, Scheduled

COUNTS = (1, 32, 128, 256)
SWEEP = np.zeros(48 << 20, np.uint8)


class Canned:
    """An engine of `count` running requests whose calls cost nothing but their results."""

    def __init__(self, count: int) -> None:
        self.count, self.call, self.made = count, 0, 0
        self.config = EngineConfig(max_num_seqs=count, num_blocks=40 * count)
        self.scheduler = object.__new__(scheduler_module.SandboxScheduler)
        self.scheduler.config = self.config
        self.scheduler.running, self.scheduler.waiting = [self.request(slot) for slot in range(count)], []  # type: ignore[assignment]
        self.runner = object.__new__(runner_module.ModelRunner)
        self.runner.step, self.runner.stalled, self.runner.memory = -1, [], FrameworkMemory(1, 2, 3, 4)
        self.runner.seq_lens_this_time = np.full(count, 5, np.int32)
        self.runner.accept_num = np.full(count, 3, np.int32)

    def request(self, slot: int) -> SandboxRequest:
        self.made += 1
        request = SandboxRequest.make(f"chatcmpl-{self.made:032d}", np.zeros(100, np.int32), 200)
        request.slot, request.block_table = slot, [0] * 10
        return request

    def prepare(self) -> tuple[SandboxRequest | None, SandboxRequest | None]:
        """The next step's scheduling result; which request finishes after it, and which comes before it."""
        running = self.scheduler.running
        comes = gone = None
        prefills = []
        if self.call % 8 == 0:
            slot = self.call // 8 % self.count
            gone, comes = running[slot], self.request(slot)
            running[slot] = comes
            prefills = [(comes, 0, 100)]
        extended = running[self.call % 20 :: 20]
        self.call += 1
        self.runner.step += 1
        self.scheduled = Scheduled(
            call=self.call, token_budget=2048, num_scheduled_tokens=900, num_running_decodes=self.count,
            prefills=prefills, extended=extended, preempted=[], aborted=[], num_running=self.count, num_waiting=3,
            num_free_blocks=100, num_blocks=1000, not_admitted="budget", num_missing_blocks=None,
        )  # fmt: skip
        return gone, comes

    def timed(self) -> int:
        """One step; ns."""
        gone, comes = self.prepare()
        scheduler, runner = self.scheduler, self.runner
        begun = time.perf_counter_ns()
        if gone is not None and comes is not None:
            scheduler.finish_request(gone, "length")
            scheduler.add_request(comes)
        result: Any = scheduler.schedule()
        runner.execute_model(result)
        return time.perf_counter_ns() - begun


current: Canned


def canned_methods() -> dict[tuple[type, str], Any]:
    """The engine's methods, giving what was prepared."""
    scheduler, runner = scheduler_module.SandboxScheduler, runner_module.ModelRunner
    return {
        (scheduler, "schedule"): lambda self: current.scheduled,
        (scheduler, "add_request"): lambda self, request: None,
        (scheduler, "finish_request"): lambda self, request, reason: None,
        (runner, "execute_model"): lambda self, scheduled: True,
    }


def hooked(directory: Path) -> tuple[Any, dict[tuple[type, str], Any]]:
    """The agent, recording into a ring of its own, and the wrapped methods."""
    for (owner, name), method in canned_methods().items():
        setattr(owner, name, method)
    arm: ModuleType = load.load(load.read_sources(str(delivery.AGENT)))
    session = {
        "id": "bench", "dir": str(directory), "output": "", "protocol": wire.PROTOCOL,
        "segments": ring.DEFAULT_SEGMENTS, "segment_size": ring.DEFAULT_SEGMENT_SIZE,
    }  # fmt: skip
    status = arm.inject(session)
    assert status["recording"] == "bench", status
    return arm.current, {(owner, name): owner.__dict__[name] for owner, name in canned_methods()}


def measure(agent: Any, wrapped: dict[Any, Any], count: int, steps: int, cold: bool) -> tuple[float, float]:
    """What the hook adds: at the 20th percentile and at the median, us."""
    global current  # noqa: PLW0603
    plain, times = canned_methods(), {True: [], False: []}  # type: ignore[var-annotated]
    engines = {True: Canned(count), False: Canned(count)}
    for adapter in agent.adapters:
        adapter.begin(agent.writer)
    for i in range(steps):
        for with_hook in (True, False):
            current = engines[with_hook]
            for (owner, name), method in (wrapped if with_hook else plain).items():
                setattr(owner, name, method)
            if cold:
                SWEEP.sum()
            taken = current.timed()
            if i > steps // 10:
                times[with_hook].append(taken)
    low, middle = (np.percentile(times[True], q) - np.percentile(times[False], q) for q in (20, 50))
    return low / 1000, middle / 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=2000)
    options = parser.parse_args()
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as directory:
        agent, wrapped = hooked(Path(directory))
        print("requests   warm p20   median     cold p20   median    us that the hook adds a step")
        for count in COUNTS:
            warm = measure(agent, wrapped, count, options.steps, cold=False)
            cold = measure(agent, wrapped, count, max(options.steps // 5, 100), cold=True)
            print(f"{count:8}   {warm[0]:8.1f} {warm[1]:8.1f}     {cold[0]:8.1f} {cold[1]:8.1f}")
        assert not agent.problem, agent.problem
        agent.stop("done")
        agent.box.remove()


if __name__ == "__main__":
    main()
