"""The parts of the GPU check about memory: the allocator, NVML, the memory fit, a step that runs out."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from pathlib import Path

from tests.gpu.outcome import Failed, Figures, Skipped, only_on_a_gpu, replay
from tests.gpu.server import Recording, Size, rows, serving

MIB = 2**20
SMI = ("nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits")
ALLOCATOR = ("allocated_bytes", "reserved_bytes", "peak_allocated_bytes", "peak_reserved_bytes")


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
