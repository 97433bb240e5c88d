"""What vLLM's adapter itself takes of a step, in microseconds, at 32, 128 and 256 running requests; no vLLM needed.

    python benchmarks/vllm_adapter.py [--cold]

It steps the tests' small engine of vLLM's surface, with four drafts a request, and times the hooks of `schedule()`, of
`get_grammar_bitmask()` (while the workers run) and of `update_from_output()` alone: medians with warm caches. With
`--cold`, as beside a model's forward, 20th percentiles: 48 MB of distinct memory are read before each call of
`schedule()` and of `update_from_output()`. `vllm_hook.py` measures the same within a real vLLM.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests" / "vllm" / "standin"), str(ROOT)]

import engine as standin  # noqa: E402
from vllm.v1.core.sched.output import ModelRunnerOutput  # noqa: E402
from vllm.v1.core.sched.scheduler import Scheduler  # noqa: E402
from vllm.v1.request import Request  # noqa: E402

from benchmarks.hook import SWEPT, distinct_memory  # noqa: E402
from fdtrace.recorder.agent import load, ring, wire  # noqa: E402

STEPS, COLD_STEPS, WARM = 600, 250, 50
OPTIONS = ["--log", "/dev/null", "--drafts", "4", "--budget", "16384", "--seqs", "512", "--blocks", "200000"]


def scheduler_of(count: int) -> Any:
    """A scheduler with so many requests that run for long."""
    sys.argv[1:] = OPTIONS
    scheduler = Scheduler(standin.configuration(standin.arguments()))
    scheduler.block_size = scheduler.kv_cache_manager.block_size = 16
    for i in range(count):
        scheduler.add_request(Request(f"request-{i:032d}", 50, 100_000))
    return scheduler


def sampled(output: Any, step: int) -> Any:
    """What a model runner would have sampled: one to three tokens a decode."""
    made = [
        [7] * (1 + (step + i) % 3 if 1 < tokens < 50 else 1)
        for i, tokens in enumerate(output.num_scheduled_tokens.values())
    ]
    return ModelRunnerOutput(list(output.num_scheduled_tokens), made)


def measure(adapter: Any, scheduler: Any, swept: Any) -> list[float]:
    """Microseconds of the three hooks. `swept`: memory that is read to empty the caches; None: they stay warm."""

    def sweep() -> None:
        if swept is not None:
            swept.sum()

    schedule, update = Scheduler.schedule.__wrapped__, Scheduler.update_from_output.__wrapped__
    times: list[tuple[float, float, float]] = []
    for step in range(STEPS if swept is None else COLD_STEPS):
        sweep()
        begun = time.perf_counter()
        token = adapter.before_schedule(scheduler, (), {})
        took = time.perf_counter() - begun
        output = schedule(scheduler)
        begun = time.perf_counter()
        adapter.after_schedule(scheduler, (), {}, token, output)
        took += time.perf_counter() - begun
        begun = time.perf_counter()
        adapter.before_bitmask(scheduler, (output,), {})
        meanwhile = time.perf_counter() - begun
        ran = sampled(output, step)
        sweep()
        begun = time.perf_counter()
        adapter.before_update(scheduler, (output, ran), {})
        times.append((took, meanwhile, time.perf_counter() - begun))
        update(scheduler, output, ran)
    share = 2 if swept is None else 5
    return [1e6 * statistics.quantiles(each, n=share)[0] for each in zip(*times[WARM:], strict=True)]


def main() -> None:
    """Measure each number of requests."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cold", action="store_true")
    swept = distinct_memory(SWEPT) if parser.parse_args().cold else None
    arm: Any = load.load(load.read_sources(str(ROOT / "recorder" / "agent")))
    with tempfile.TemporaryDirectory() as directory:
        agent = arm.Agent(keep_hooks=True)
        agent.install()
        agent.attend()
        session = {
            "id": "benchmark", "dir": directory, "segments": ring.DEFAULT_SEGMENTS,
            "segment_size": ring.DEFAULT_SEGMENT_SIZE, "protocol": wire.PROTOCOL,
        }  # fmt: skip
        for count in (32, 128, 256):
            agent.start(session)
            (adapter,) = (one for one in agent.adapters if type(one).__name__ == "VllmAdapter")
            schedule, meanwhile, update = measure(adapter, scheduler_of(count), swept)
            if agent.problem:
                raise SystemExit(f"the agent switched itself off: {agent.problem}")
            print(
                f"{count} requests: schedule +{schedule:.0f} us, update_from_output +{update:.0f} us, "
                f"and {meanwhile:.0f} us while the workers run",
                flush=True,
            )
            agent.stop("end")


if __name__ == "__main__":
    main()
