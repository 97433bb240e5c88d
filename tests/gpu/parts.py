"""The parts of the GPU check. Each gives its figures, raises `Failed` with what is wrong, or `Skipped` with why."""

from __future__ import annotations

import itertools
import json
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.gpu.server import ENGINE, Recording, Server, Size, rows, serving

Figures = dict[str, Any]
MIB = 2**20
SMI = ("nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits")
ALLOCATOR = ("allocated_bytes", "reserved_bytes", "peak_allocated_bytes", "peak_reserved_bytes")


class Failed(Exception):
    """What was measured is not what was to be."""


class Skipped(Exception):
    """This machine cannot show it."""


def only_on_a_gpu(size: Size, what: str) -> None:
    """Skipped on a CPU."""
    if size.device == "cpu":
        raise Skipped(f"{what}: this needs a GPU")


def tokens(directory: Path, size: Size) -> Figures:
    """Attached under load: each recorded step is one of the engine's own log, in its order."""
    trace = directory / "tokens.duckdb"
    with serving(directory, "tokens", size) as server:
        server.run_steps(30)
        recording = Recording(server, trace)
        server.run_steps(150)
        recording.end()
        own = [json.loads(line) for line in server.log.read_text().splitlines() if line.endswith("}")]
        timings = server.steps()
    batches = [sorted([name, count] for name, count, _ in line["rows"]) for line in own]
    found: dict[int, list[list[Any]]] = {}
    for step, name, count in rows(trace, "SELECT step, request_id, num_tokens FROM step_request JOIN request "
                                         "USING (engine_id, request)"):  # fmt: skip
        found.setdefault(step, []).append([name, count])
    recorded = [sorted(found[step]) for step in sorted(found)]
    at = next((i for i in range(len(batches)) if batches[i : i + len(recorded)] == recorded), None)
    if at is None or len(recorded) < 100:
        raise Failed(f"{len(recorded)} recorded steps are no part of the {len(batches)} that it ran")
    (directory / "tokens.at").write_text(str(at))
    longest = max(end - begin for begin, end, *_ in timings[at : at + len(recorded)])
    return {
        "steps": len(recorded), "tokens": sum(count for batch in recorded for _, count in batch),
        "longest_step_ms": longest / 1e6,
    }  # fmt: skip


def allocator(directory: Path, size: Size) -> Figures:
    """The four figures of each recorded step are those that PyTorch itself gave after that forward."""
    only_on_a_gpu(size, "PyTorch's CUDA allocator")
    recorded = rows(directory / "tokens.duckdb", f"SELECT {', '.join(ALLOCATOR)} FROM step ORDER BY step")
    at = int((directory / "tokens.at").read_text())
    lines = (directory / "tokens.timings").read_text().splitlines()
    own = [tuple(json.loads(line)[2:6]) for line in lines[at : at + len(recorded)]]
    different = [i for i, (a, b) in enumerate(zip(recorded, own, strict=True)) if tuple(a) != b]
    if different:
        i = different[0]
        raise Failed(f"{len(different)} of {len(own)} steps differ, first {recorded[i]}, by PyTorch {own[i]}")
    return {"steps": len(own), "peak_reserved_mib": max(row[3] for row in own) / MIB}


def device_memory(directory: Path, size: Size) -> Figures:
    """NVML's used memory in the trace beside what `nvidia-smi` says at the same time."""
    only_on_a_gpu(size, "NVML")
    if shutil.which("nvidia-smi") is None:
        raise Skipped("there is no nvidia-smi")
    trace = directory / "nvml.duckdb"
    with serving(directory, "nvml", size) as server:
        server.run_steps(30)
        recording = Recording(server, trace)
        server.run_steps(60)
        said = int(subprocess.run(SMI, capture_output=True, text=True, check=True).stdout.split()[0]) * MIB
        recording.end()
    used = [
        value
        for (value,) in rows(trace, "SELECT device_used_bytes FROM step WHERE device_used_bytes IS NOT NULL")
    ]
    if not used:
        raise Failed("device_used_bytes is NULL in every step")
    nearest = min(used, key=lambda value: abs(value - said))
    if abs(nearest - said) > 64 * MIB:
        raise Failed(f"nvidia-smi says {said / MIB:.0f} MiB, the trace {nearest / MIB:.0f} at the nearest")
    return {"nvidia_smi_mib": said / MIB, "trace_mib": nearest / MIB}


def memory_fit(directory: Path, size: Size) -> Figures:
    """What a recording under one budget implies for a larger one, beside a run with that one."""
    only_on_a_gpu(size, "the memory fit")
    first, second = directory / "fit.duckdb", directory / "fit-larger.duckdb"
    larger = ("--batch-tokens", str(size.larger_budget))
    for trace, name, options in ((first, "fit", ()), (second, "fit-larger", larger)):
        with serving(directory, name, size, *options, "--idle", "3") as server:
            recording = Recording(server, trace)
            server.run_steps(200)
            recording.end()
    replayed = replay(first, "--scheduler", "transformers", "-f", f"larger: {size.larger_budget}")
    implied = next(one for one in replayed["formulas"] if one["name"] == "larger")["reserved_high_water"]
    if implied is None:
        raise Failed("no fit: the allocator did not grow with the largest step")
    real = int(rows(second, "SELECT max(peak_reserved_bytes) FROM step")[0][0])
    before = int(rows(first, "SELECT max(peak_reserved_bytes) FROM step")[0][0])
    return {
        "recorded_mib": before / MIB, "implied_mib": implied / MIB, "real_mib": real / MIB,
        "error_of_growth": (implied - real) / max(1, real - before),
    }  # fmt: skip


FIRST_MARGIN_GIB, LEAST_GIB, MOST_TRIES = 0.8, 0.05, 4
"""What PyTorch may use beyond what the engine holds before its first step: the first try, the least, and how many tries
there are. A step that fits is tried again with a third of it; if the engine does not even start, with twice as much.
"""


def out_of_memory(directory: Path, size: Size) -> Figures:
    """A budget that is too large for what PyTorch may use: the step that failed is in the trace, and named."""
    only_on_a_gpu(size, "running out of memory")
    held = int(rows(directory / "tokens.duckdb", "SELECT min(allocated_bytes) FROM step")[0][0])
    budget = 4 * size.budget
    mask = (budget - size.budget) * size.cache_tokens * 2  # of 16-bit numbers, made for the whole budget
    margin, found = FIRST_MARGIN_GIB, None
    tried: list[str] = []
    while not found and len(tried) < MOST_TRIES and margin >= LEAST_GIB:
        found = run_out(directory, size, budget, (held + mask) / 2**30 + margin)
        tried.append(f"{margin:.2f}: {'it did not start' if found is None else 'every step fitted'}")
        margin *= 2 if found is None else 1 / 3
    if not found:
        raise Failed(
            f"no step ran out of memory with {(held + mask) / 2**30:.2f} GiB and more: {'; '.join(tried)}"
        )
    peak = int(rows(directory / "tokens.duckdb", "SELECT max(peak_reserved_bytes) FROM step")[0][0])
    asked = replay(directory / "tokens.duckdb", "--as-recorded", "-f", "same: max_num_batched_tokens",
                   "--device-memory", f"{int(peak * 0.95)}")  # fmt: skip
    return {**found, "device_memory_names_step": asked["formulas"][-1]["out_of_memory_step"]}


def run_out(directory: Path, size: Size, budget: int, given_gib: float) -> Figures | None:
    """One try: the step that failed, as the trace has it; empty if none did; None if the engine did not start."""
    trace = directory / "oom.duckdb"
    trace.unlink(missing_ok=True)
    options = ("--batch-tokens", str(budget), "--memory-gib", f"{given_gib:.3f}", "--idle", "3")
    said = directory / "oom.said"
    try:
        with serving(directory, "oom", size, *options, "--prompt", "1200:1400") as server:
            recording = Recording(server, trace)
            until = time.monotonic() + 10
            while time.monotonic() < until and "OutOfMemory" not in said.read_text():
                time.sleep(0.2)
            server.process.kill()
            recording.end(killed=True)
    except RuntimeError:
        return None
    if not trace.exists():
        return None
    errors = rows(trace, "SELECT step, reason FROM event WHERE kind = 'error'")
    if not any("OutOfMemory" in (reason or "") for _, reason in errors):
        return {}
    last, count = rows(trace, "SELECT step, num_tokens FROM step ORDER BY step DESC LIMIT 1")[0]
    return {"failed_step": last, "its_tokens": count, "budget": budget, "memory_gib": given_gib}


def hook(directory: Path, size: Size) -> Figures:
    """Windows of one load, recorded and not in turn: the median time from a step's end to the next, and the processor
    time that the loop's thread takes for it, which other work on the machine does not count in.
    """
    took: dict[bool, list[float]] = {True: [], False: []}
    worked: dict[bool, list[float]] = {True: [], False: []}
    with serving(directory, "hook", size) as server:
        server.run_steps(50)
        for number, recorded in enumerate([True, False, False, True] * (size.pairs // 2)):
            recording = Recording(server, directory / f"hook{number}.duckdb") if recorded else None
            time.sleep(0.3)
            first = len(server.steps())
            time.sleep(size.window_s)
            steps = server.steps()[first:]
            pairs = list(itertools.pairwise(steps))
            took[recorded].append(statistics.median(b[1] - a[1] for a, b in pairs))
            worked[recorded].append(statistics.median(b[6] - a[6] for a, b in pairs))
            if recording is not None:
                recording.end()
    ratios = [a / b for a, b in zip(took[True], took[False], strict=True)]
    more = [a - b for a, b in zip(worked[True], worked[False], strict=True)]
    return {
        "step_ms": statistics.median(took[False]) / 1e6, "recorded_step_ms": statistics.median(took[True]) / 1e6,
        "ratio": statistics.median(ratios), "ratios": ratios,
        "processor_us": statistics.median(worked[False]) / 1e3, "more_processor_us": statistics.median(more) / 1e3,
        "more_processor_us_of_each": [one / 1e3 for one in more],
    }  # fmt: skip


def largest_gap(begun: int, steps: list[list[int]]) -> float:
    """The longest time between the ends of two steps from `begun` on, ms."""
    ends = [step[1] for step in steps if step[1] >= begun]
    return max((b - a for a, b in zip(ends, ends[1:])), default=0) / 1e6  # noqa: B905, RUF007


def attaching(directory: Path, size: Size) -> Figures:
    """How long attaching takes, the largest gap between two steps while it does, and what the collector costs."""
    attached, gaps, plain, shares = [], [], [], []
    with serving(directory, "attach", size) as server:
        server.run_steps(50)
        for number in range(2 * size.pairs):
            begun = time.time_ns()
            time.sleep(1.0)
            plain.append(largest_gap(begun, server.steps()))
            begun = time.time_ns()
            recording = Recording(server, directory / f"attach{number}.duckdb")
            attached.append(recording.attached_ms)
            time.sleep(1.0)
            gaps.append(largest_gap(begun, server.steps()))
            before, since = recording.cpu_seconds(), time.monotonic()
            time.sleep(1.0)
            shares.append((recording.cpu_seconds() - before) / (time.monotonic() - since))
            recording.end()
    return {
        "cycles": len(attached), "attached_ms": statistics.median(attached), "attached_ms_most": max(attached),
        "largest_gap_ms": statistics.median(gaps), "largest_gap_ms_most": max(gaps),
        "without_ms": statistics.median(plain), "without_ms_most": max(plain),
        "collector_of_one_core": statistics.median(shares),
    }  # fmt: skip


def replay(trace: Path, *options: str) -> dict[str, Any]:
    """`fdtrace replay --json`, with the engine's Python for its scheduler."""
    command = [sys.executable, "-m", "fdtrace", "replay", str(trace), "--json", *options]
    if "--scheduler" in options:
        command += ["--scheduler-python", ENGINE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failed(done.stderr[-500:])
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def real_scheduler(directory: Path, size: Size) -> Figures:
    """The recorded traffic through the engine's own scheduler on the CPU: the steps that come out as recorded."""
    trace = directory / "replay.duckdb"
    with serving(directory, "replay", size, "--idle", "3") as server:
        recording = Recording(server, trace)
        server.run_steps(200)
        recording.end()
    found = replay(trace, "--scheduler", "transformers")["formulas"][-1]["fidelity"]
    all_equal = (
        found["num_equal"] == found["num_steps"]
    )  # the replay may go on after the recording's last step
    return {
        "steps": found["num_steps"],
        "equal": found["num_equal"],
        "first_departure": None if all_equal else found["first_divergence"],
    }


PARTS = (tokens, allocator, device_memory, real_scheduler, hook, attaching, memory_fit, out_of_memory)
"""In this order: those that may take long because they search come last."""

__all__ = ["PARTS", "Failed", "Figures", "Server", "Skipped"]
