"""What the hook adds to a step, in microseconds, at 1, 32, 128 and 256 running requests, warm and cold.

    python benchmarks/hook.py [--steps N]

The sandbox's own classes with canned results, so that what is timed is the wrapper, the adapter and the ring, called as
an engine calls them: add_request, schedule, execute_model, finish_request. Every step has decodes of all running
requests and new blocks for one in twenty; every eighth a request finishes and another comes with a prefill chunk. The
same steps run with and without the hook, in turn; the difference of their 20th percentiles and of their medians is
what the hook adds. Each has classes of its own: to change a class at each step would cost more than some hooks, since
the interpreter then forgets what it has learned about it. Cold: 48 MB are read before each step, every page of them
another one. That evicts the caches and the address translations, as the forward of a real engine does.
"""

from __future__ import annotations

import argparse
import mmap
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from fdtrace.recorder import agent_delivery
from fdtrace.recorder.agent import load, ring, wire
from fdtrace.sandbox import runner as runner_module
from fdtrace.sandbox import sandbox_scheduler as scheduler_module
from fdtrace.sandbox.engine_config import EngineConfig
from fdtrace.sandbox.framework import FrameworkMemory
from fdtrace.sandbox.sandbox_request import SandboxRequest, Scheduled

COUNTS = (1, 32, 128, 256)
SWEPT = 48 << 20
"""Bytes that are read before a cold step."""

HOOKED = scheduler_module.SandboxScheduler, runner_module.ModelRunner
"""The engine's classes. The agent wraps their methods."""


class Canned:
    """An engine of `count` running requests whose calls cost nothing but their results."""

    def __init__(self, count: int, classes: tuple[Any, Any]) -> None:
        self.count, self.call, self.made = count, 0, 0
        self.config = EngineConfig(max_num_seqs=count, num_blocks=40 * count)
        self.scheduler: Any = object.__new__(classes[0])
        self.scheduler.config = self.config
        self.scheduler.running, self.scheduler.waiting = [self.request(slot) for slot in range(count)], []
        self.runner: Any = object.__new__(classes[1])
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


Memory = np.ndarray[Any, np.dtype[np.uint8]]


def distinct_memory(size: int) -> Memory:
    """So many bytes in small pages, each written once.

    To read memory that was never written evicts little: the kernel shows the same page of zeros at all its addresses.
    And a large page takes one address translation for 512 small ones.
    """
    pages = mmap.mmap(-1, size)
    with suppress(OSError):  # a kernel without large pages
        pages.madvise(mmap.MADV_NOHUGEPAGE)
    memory = np.frombuffer(pages, np.uint8)
    memory[:] = 1
    return memory


def canned_methods() -> tuple[dict[str, Any], dict[str, Any]]:
    """The methods of the engine's two classes, giving what was prepared."""
    scheduler = {
        "schedule": lambda self: current.scheduled,
        "add_request": lambda self, request: None,
        "finish_request": lambda self, request, reason: None,
    }
    return scheduler, {"execute_model": lambda self, scheduled: True}


def plain_classes() -> tuple[type, type]:
    """Classes with the same methods, for the engine without hooks."""
    scheduler, runner = canned_methods()
    return type("PlainScheduler", HOOKED[:1], scheduler), type("PlainRunner", HOOKED[1:], runner)


def hooked(directory: Path) -> Any:
    """The agent, recording into a ring of its own. It has wrapped the methods of the engine's classes."""
    for owner, methods in zip(HOOKED, canned_methods(), strict=True):
        for name, method in methods.items():
            setattr(owner, name, method)
    arm: ModuleType = load.load(load.read_sources(str(agent_delivery.AGENT)))
    session = {
        "id": "bench", "dir": str(directory), "output": "", "protocol": wire.PROTOCOL,
        "segments": ring.DEFAULT_SEGMENTS, "segment_size": ring.DEFAULT_SEGMENT_SIZE,
    }  # fmt: skip
    status = arm.inject(session)
    assert status["recording"] == "bench", status
    return arm.current


def measure(
    agent: Any, plain: tuple[type, type], count: int, steps: int, swept: Memory | None
) -> tuple[float, float]:
    """What the hook adds: at the 20th percentile and at the median, us. `swept` is read before each step."""
    global current  # noqa: PLW0603
    times: dict[bool, list[int]] = {True: [], False: []}
    engines = {True: Canned(count, HOOKED), False: Canned(count, plain)}
    for adapter in agent.adapters:
        adapter.begin(agent.writer)
    for i in range(steps):
        for with_hook in (True, False):
            current = engines[with_hook]
            if swept is not None:
                swept.sum()
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
        agent, plain, swept = hooked(Path(directory)), plain_classes(), distinct_memory(SWEPT)
        print("requests   warm p20   median     cold p20   median    us that the hook adds a step")
        for count in COUNTS:
            warm = measure(agent, plain, count, options.steps, None)
            cold = measure(agent, plain, count, max(options.steps // 5, 100), swept)
            print(f"{count:8}   {warm[0]:8.1f} {warm[1]:8.1f}     {cold[0]:8.1f} {cold[1]:8.1f}")
        assert not agent.problem, agent.problem
        agent.stop("done")
        agent.box.remove()


if __name__ == "__main__":
    main()
