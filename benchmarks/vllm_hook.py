"""What the hooks add to a step of a real vLLM engine, at 32, 128 and 256 running requests, in one process.

    $VLLM_PYTHON benchmarks/vllm_hook.py MODEL      (tests/vllm/tiny_model.py makes one)

The same engine steps on, its classes hooked in every other block of steps. Told are the medians of `schedule()` and of
`update_from_output()`, what both hooked ones take longer, and what `get_grammar_bitmask()` does, which is called while
the workers run (here they have run already). The agent writes into a ring that nobody reads. Beside it stands what
vLLM's own `--enable-logging-iteration-details` takes: what the engine counts for it, and the line of the log, which a
server's API process writes.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_TARGET_DEVICE="cpu", VLLM_CPU_KVCACHE_SPACE="1")
os.environ.update(HF_HUB_OFFLINE="1", VLLM_NO_USAGE_STATS="1", VLLM_LOGGING_STREAM="ext://sys.stderr")
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from fdtrace.recorder.agent import load, ring, wire  # noqa: E402

COUNTS = (32, 128, 256)
METHODS = ("schedule", "update_from_output", "get_grammar_bitmask")
BLOCK, BLOCKS = 8, 30
"""Steps hooked or not in a row, and how many such rows."""
STEPS = 100
"""Steps with vLLM's iteration details, in which few requests end."""


class Clock:
    """Times calls of a method of one object, by whether its class is hooked."""

    def __init__(self, owner: Any, name: str) -> None:
        self.times: dict[bool, list[float]] = {True: [], False: []}
        self.hooked = False

        def timed(*args: Any, **kwargs: Any) -> Any:
            begun = time.perf_counter()
            result = getattr(type(owner), name)(owner, *args, **kwargs)
            self.times[self.hooked].append(1e6 * (time.perf_counter() - begun))
            return result

        setattr(owner, name, timed)

    def median(self, hooked: bool) -> float:
        """Microseconds."""
        return statistics.median(self.times[hooked])


def agent_in(directory: str) -> Any:
    """An agent that records into a ring there."""
    arm: Any = load.load(load.read_sources(str(ROOT / "recorder" / "agent")))
    agent = arm.Agent(keep_hooks=True)
    agent.install()
    agent.attend()
    agent.start({
        "id": "benchmark", "dir": directory, "segments": ring.DEFAULT_SEGMENTS,
        "segment_size": ring.DEFAULT_SEGMENT_SIZE, "protocol": wire.PROTOCOL,
    })  # fmt: skip
    return agent


class Took:
    """A function, and how long each of its calls took."""

    def __init__(self, function: Any) -> None:
        self.function, self.times = function, list[float]()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        begun = time.perf_counter()
        result = self.function(*args, **kwargs)
        self.times.append(1e6 * (time.perf_counter() - begun))
        return result

    def bound(self) -> Any:
        """As a method of a class."""

        def method(*args: Any, **kwargs: Any) -> Any:
            return self(*args, **kwargs)

        return method

    def median(self) -> float:
        """Microseconds."""
        return statistics.median(self.times)


def add(engine: Any, name: str, count: int) -> None:
    """Add so many requests."""
    from vllm import SamplingParams

    for i in range(count):
        prompt = {"prompt_token_ids": [3 + (i * j) % 200 for j in range(20)]}
        sampling = SamplingParams(temperature=0.0, max_tokens=900, ignore_eos=True)
        engine.add_request(f"{name}-{count}-{i}", prompt, sampling)


def measure(engine: Any, agent: Any, count: int) -> str:
    """Keep `count` requests running, and hook every other block of steps."""
    core = engine.engine_core.engine_core
    clocks = [Clock(core.scheduler, name) for name in METHODS]
    add(engine, "hooks", count)
    for _ in range(20):
        engine.step()
    for clock in clocks:
        clock.times = {True: [], False: []}
    for block in range(BLOCKS):
        for done in agent.installed:
            setattr(done.owner, done.hook.method, done.wrapper if block % 2 else done.original)
        for clock in clocks:
            clock.hooked = bool(block % 2)
        for step in range(BLOCK + 2):
            engine.step()
            if step < 2:  # the first after a change is not judged
                for clock in clocks:
                    clock.times[clock.hooked].pop()
    schedule, update, meanwhile = [clock.median(True) - clock.median(False) for clock in clocks]
    engine.abort_request([f"hooks-{count}-{i}" for i in range(count)])
    engine.step()
    for name in METHODS:
        delattr(core.scheduler, name)
    plain = [clock.median(False) for clock in clocks]
    return (
        f"{count} requests: schedule {plain[0]:.0f} us, update {plain[1]:.0f} us; "
        f"hooks add {schedule + update:.0f} us, and {meanwhile:.0f} us while the workers run"
    )


def of_iteration_details(engine: Any, count: int) -> str:
    """Keep `count` requests running, with vLLM's own log of each step."""
    from vllm.v1.engine import core as of_core
    from vllm.v1.metrics.loggers import LoggingStatLogger

    core = engine.engine_core.engine_core
    core.vllm_config.observability_config.enable_logging_iteration_details = True
    add(engine, "details", count)
    for _ in range(20):
        engine.step()
    counted, logged = Took(of_core.compute_iteration_details), Took(LoggingStatLogger._log_iteration_details)
    of_core.compute_iteration_details, LoggingStatLogger._log_iteration_details = counted, logged.bound()
    for _ in range(STEPS):
        engine.step()
    of_core.compute_iteration_details = counted.function
    LoggingStatLogger._log_iteration_details = logged.function
    core.vllm_config.observability_config.enable_logging_iteration_details = False
    engine.abort_request([f"details-{count}-{i}" for i in range(count)])
    engine.step()
    return (
        f"{count} requests: vLLM's iteration details take {counted.median():.0f} us in the engine, "
        f"and their line {logged.median():.0f} us in the API server"
    )


def main() -> None:
    """Measure each number of requests."""
    from vllm import LLM

    llm = LLM(
        sys.argv[1], enforce_eager=True, dtype="float32", max_model_len=1024, max_num_batched_tokens=2048,
        max_num_seqs=max(COUNTS), distributed_executor_backend="uni",
        speculative_config={"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 3},
        disable_log_stats=False,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as directory:
        agent = agent_in(directory)
        for count in COUNTS:
            print(measure(llm.llm_engine, agent, count), flush=True)
            for done in agent.installed:
                setattr(done.owner, done.hook.method, done.original)
            print(of_iteration_details(llm.llm_engine, count), flush=True)
        if agent.problem:
            raise SystemExit(f"the agent switched itself off: {agent.problem}")
        agent.stop("end")


if __name__ == "__main__":
    main()
