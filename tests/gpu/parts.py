"""The parts of the GPU check. Each gives its figures, raises `Failed` with what is wrong, or `Skipped` with why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.gpu.memory_parts import allocator, device_memory, memory_fit, out_of_memory
from tests.gpu.outcome import Failed, Figures, replay
from tests.gpu.server import Recording, Size, rows, serving
from tests.gpu.time_parts import attaching, hook


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
