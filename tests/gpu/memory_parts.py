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
        begun = time.time_ns()
        said = int(subprocess.run(SMI, capture_output=True, text=True, check=True).stdout.split()[0]) * MIB
        ended = time.time_ns()
        server.run_steps(10)
        recording.end()
    query = (
        "SELECT epoch_ns(ts), device_used_bytes FROM step WHERE device_used_bytes IS NOT NULL ORDER BY step"
    )
    used = rows(trace, query)
    if not used:
        raise Failed("device_used_bytes is NULL in every step")
    # The allocator may take memory while nvidia-smi runs: what it says lies between the steps before and after it.
    before = [value for at, value in used if at <= begun][-1:]
    meanwhile = [value for at, value in used if begun < at <= ended]
    after = [value for at, value in used if at > ended][:3]  # a step has the last sample, up to 0.1 s old
    values = before + meanwhile + after
    if not min(values) - 64 * MIB <= said <= max(values) + 64 * MIB:
        low, high = min(values) / MIB, max(values) / MIB
        raise Failed(f"nvidia-smi says {said / MIB:.0f} MiB, the trace {low:.0f} to {high:.0f} at that time")
    nearest = min(values, key=lambda value: abs(value - said))
    return {"nvidia_smi_mib": said / MIB, "trace_mib": nearest / MIB}


RAMP = ("--growing", "24", "--idle", "3")
"""From an idle engine, that the recording may have every step; first prompts one by one, so that small steps are seen
before the large ones.
"""


def memory_fit(directory: Path, size: Size) -> Figures:
    """What a recording under one budget implies for a larger one, beside a run with that one."""
    only_on_a_gpu(size, "the memory fit")
    first, second = directory / "fit.duckdb", directory / "fit-larger.duckdb"
    larger = ("--batch-tokens", str(size.larger_budget))
    for trace, name, options in ((first, "fit", ()), (second, "fit-larger", larger)):
        with serving(directory, name, size, *options, *RAMP) as server:
            recording = Recording(server, trace)
            server.run_steps(250)
            recording.end()
    implied = larger_budget(first, size)["allocated_high_water"]
    if implied is None:
        raise Failed("no fit: what a step needs did not grow with its tokens and KV cache reads")
    peaks = "SELECT max(peak_allocated_bytes), max(peak_reserved_bytes) FROM step"
    (before, held_before), (real, held) = rows(first, peaks)[0], rows(second, peaks)[0]
    return {
        "needed_mib": before / MIB, "implied_mib": implied / MIB, "needed_with_larger_budget_mib": real / MIB,
        "error_of_growth": (implied - real) / max(1, real - before),
        "reserved_mib": held_before / MIB, "reserved_with_larger_budget_mib": held / MIB,
    }  # fmt: skip


def larger_budget(trace: Path, size: Size, *options: str) -> Figures:
    """The recorded requests through the engine's own scheduler with the larger budget."""
    replayed = replay(trace, "--scheduler", "transformers", "-f", f"larger: {size.larger_budget}", *options)
    found: Figures = next(one for one in replayed["formulas"] if one["name"] == "larger")
    return found


def out_of_memory(directory: Path, size: Size) -> Figures:
    """An engine that may use less than it needs: the step that fails is in the trace, and was predicted by recordings
    of engines that did not fail, one with the same budget, one with a smaller one.
    """
    only_on_a_gpu(size, "running out of memory")
    whole = directory / "fit-larger.duckdb"
    alone = rows(whole, "SELECT max(peak_allocated_bytes) FROM step WHERE num_running <= 1")[0][0]
    most = rows(whole, "SELECT max(peak_allocated_bytes) FROM step")[0][0]
    given = (alone + most) // 2
    found = run_out(directory, size, given)
    same = replay(whole, "--as-recorded", "-f", "same: max_num_batched_tokens")["formulas"][0]
    device = f"{given + same['memory']['other_bytes']}B"
    same = replay(whole, "--as-recorded", "-f", "same: max_num_batched_tokens", "--device-memory", device)
    smaller = larger_budget(directory / "fit.duckdb", size, "--device-memory", device)
    return {
        **found, "predicted_step": same["formulas"][0]["out_of_memory_step"],
        "predicted_by_smaller_budget": smaller["out_of_memory_step"], "given_mib": given / MIB,
        "needed_mib": most / MIB,
    }  # fmt: skip


def run_out(directory: Path, size: Size, given: int) -> Figures:
    """The step that failed where PyTorch may use `given` bytes, as the trace has it."""
    trace, said = directory / "oom.duckdb", directory / "oom.said"
    options = ("--batch-tokens", str(size.larger_budget), "--memory-gib", f"{given / 2**30:.6f}", *RAMP)
    with serving(directory, "oom", size, *options) as server:
        recording = Recording(server, trace)
        until = time.monotonic() + 20
        while time.monotonic() < until and "OutOfMemory" not in said.read_text():
            time.sleep(0.2)
        server.process.kill()
        recording.end(killed=True)
    errors = rows(trace, "SELECT step, reason FROM event WHERE kind = 'error'")
    if not any("OutOfMemory" in (reason or "") for _, reason in errors):
        raise Failed(f"no step ran out of {given / MIB:.0f} MiB: {errors[:3]}")
    columns = "step, num_tokens, num_cache_read_tokens, peak_allocated_bytes"
    step, tokens, reads, peak = rows(trace, f"SELECT {columns} FROM step ORDER BY step DESC LIMIT 1")[0]
    return {"failed_step": step, "its_tokens": tokens, "its_cache_reads": reads, "peak_mib": peak / MIB}
