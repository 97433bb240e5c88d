"""The parts of the GPU check. Each gives its figures, raises `Failed` with what is wrong, or `Skipped` with why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.gpu.memory_parts import allocator, device_memory, memory_fit, out_of_memory
from tests.gpu.outcome import Failed, Figures, only_on_a_gpu, replay
from tests.gpu.server import Recording, Server, Size, rows, serving
from tests.gpu.time_parts import attaching, hook


def own_batches(server: Server) -> list[list[list[Any]]]:
    """The requests and tokens of each batch that the engine prepared, as its own log has them."""
    own = [json.loads(line) for line in server.log.read_text().splitlines() if line.endswith("}")]
    return [sorted([name, count] for name, count, _ in line["rows"]) for line in own]


def recorded_batches(trace: Path) -> list[list[list[Any]]]:
    """The same of each step of a recording."""
    batches: dict[int, list[list[Any]]] = {}
    query = "SELECT step, request_id, num_tokens FROM step_request JOIN request USING (engine_id, request)"
    for step, name, count in rows(trace, query):
        batches.setdefault(step, []).append([name, count])
    return [sorted(batches[step]) for step in sorted(batches)]


def place_of(recorded: list[list[list[Any]]], own: list[list[list[Any]]]) -> int:
    """Where the recorded batches begin among the engine's own; Failed if they are no part of them."""
    at = next((i for i in range(len(own)) if own[i : i + len(recorded)] == recorded), None)
    if at is None or len(recorded) < 100:
        raise Failed(f"{len(recorded)} recorded steps are no part of the {len(own)} that it ran")
    return at


def tokens(directory: Path, size: Size) -> Figures:
    """Attached under load: each recorded step is one of the engine's own log, in its order."""
    trace = directory / "tokens.duckdb"
    with serving(directory, "tokens", size) as server:
        server.run_steps(30)
        recording = Recording(server, trace)
        server.run_steps(150)
        recording.end()
        own, timings = own_batches(server), server.steps()
    recorded = recorded_batches(trace)
    at = place_of(recorded, own)
    (directory / "tokens.at").write_text(str(at))
    longest = max(end - begin for begin, end, *_ in timings[at : at + len(recorded)])
    return {
        "steps": len(recorded), "tokens": sum(count for batch in recorded for _, count in batch),
        "longest_step_ms": longest / 1e6,
    }  # fmt: skip


def asynchronous(directory: Path, size: Size) -> Figures:
    """The next batch is scheduled while the GPU computes one, in CUDA graphs: recorded as it ran, and replayed."""
    only_on_a_gpu(size, "asynchronous batching in CUDA graphs")
    trace = directory / "asynchronous.duckdb"
    with serving(directory, "asynchronous", size, "--asynchronous", "--graphs", "--idle", "3") as server:
        recording = Recording(server, trace)
        server.run_steps(300)
        recording.end()
        own = own_batches(server)
    recorded = recorded_batches(trace)
    place_of(recorded, own)
    launched = rows(
        trace,
        "SELECT sum(num_predicted_tokens), sum(num_tokens) FROM step WHERE num_predicted_tokens IS NOT NULL",
    )
    return {
        "launched_over_scheduled": launched[0][0] / launched[0][1] if launched[0][1] else None,
        **equal_steps(trace),
    }  # fmt: skip


def real_scheduler(directory: Path, size: Size) -> Figures:
    """The recorded traffic through the engine's own scheduler on the CPU: the steps that come out as recorded."""
    trace = directory / "replay.duckdb"
    with serving(directory, "replay", size, "--idle", "3") as server:
        recording = Recording(server, trace)
        server.run_steps(200)
        recording.end()
    return equal_steps(trace)


def equal_steps(trace: Path) -> Figures:
    """The steps that come out as recorded when the engine's own scheduler replays them."""
    fidelity = replay(trace, "--scheduler", "transformers")["formulas"][-1]["fidelity"]
    whole = (
        fidelity["num_equal"] == fidelity["num_steps"]
    )  # the replay may go on after the recording's last step
    return {
        "steps": fidelity["num_steps"],
        "equal": fidelity["num_equal"],
        "first_departure": None if whole else fidelity["first_divergence"],
    }


PARTS = (
    tokens, allocator, device_memory, real_scheduler, asynchronous, hook, attaching, memory_fit, out_of_memory,
)  # fmt: skip
"""In this order: those that may take long because they search come last."""
