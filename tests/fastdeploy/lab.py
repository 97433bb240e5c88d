"""A recording of FastDeploy's lab against what the lab itself wrote: differences, in words."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

from fdtrace.recorder.trace.trace import Trace, open_trace

SummaryLine = dict[str, Any]


def lab_lines(path: Path) -> list[SummaryLine]:
    """The lab's lines that ran a forward; what a line without one did goes with the next, as in a trace."""
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    lines = [json.loads(line) for line in text.splitlines()]
    kept: list[SummaryLine] = []
    carried: dict[str, list[Any]] = {"preempted": [], "extended": [], "aborted": [], "errors": []}
    before: set[str] = set()
    for line in lines:
        for name in carried:
            carried[name] += line[name]
        if not line["tokens"]:
            continue
        line.update({name: sorted(values) for name, values in carried.items()})
        carried = {name: [] for name in carried}
        line["begins_to_stall"] = sorted(set(line["stalled"]) - before)
        before = set(line["stalled"])
        kept.append(line)
    return kept


def trace_lines(trace: Trace, engine_id: int = 0) -> list[SummaryLine]:
    """The same, from one engine of a trace."""
    engine = f"WHERE engine_id = {engine_id}"
    lines: dict[int, SummaryLine] = {}
    for row in trace.rows(f"FROM step {engine} ORDER BY step"):
        lines[row["step"]] = {
            "tokens": row["num_tokens"],
            "rows": [],
            "num_preempted": row["num_preempted"],
            "num_stalled": row["num_stalled"],
            "running": row["num_running"],
            "waiting": row["num_waiting"],
            "free_blocks": row["num_free_blocks"],
        }
        for name in ("preempted", "extended", "aborted", "finished", "begins_to_stall", "errors"):
            lines[row["step"]][name] = []
    for row in trace.rows(f"FROM step_request JOIN request USING (engine_id, request) {engine}"):
        told = [row["request_id"], row["kind"], row["num_tokens"], row["num_computed_tokens"]]
        lines[row["step"]]["rows"].append(told)
    names = {"stalled": "begins_to_stall", "error": "errors"}
    for row in trace.rows(f"FROM event LEFT JOIN request USING (engine_id, request) {engine}"):
        if row["kind"] == "finished" and row["reason"] in ("abort", "error"):
            continue  # the lab tells these as aborted and as errors alone
        name = names.get(row["kind"], row["kind"])
        line = lines.get(row["step"])
        if line is not None and name in line:
            line[name].append(row["request_id"])
    return [lines[step] for step in sorted(lines)]


def differences(trace_path: Path, lab_path: Path, engine_id: int = 0, most: int = 20) -> list[str]:
    """What a trace and the lab's own lines say differently; the last steps' own ends may not be told."""
    expected = lab_lines(lab_path)
    with open_trace(trace_path) as trace:
        found = trace_lines(trace, engine_id)
    told = [] if len(expected) == len(found) else [f"{len(expected)} steps, {len(found)} in the trace"]
    for step, (want, have) in enumerate(zip(expected, found, strict=False)):
        pairs: dict[str, tuple[Any, Any]] = {
            name: (want[name], have[name]) for name in ("tokens", "running", "waiting", "free_blocks")
        }
        for name in ("rows", "preempted", "extended", "aborted", "finished", "begins_to_stall", "errors"):
            pairs[name] = sorted(want[name]), sorted(have[name])
        pairs["num_preempted"] = len(want["preempted"]), have["num_preempted"]
        pairs["num_stalled"] = len(want["stalled"]), have["num_stalled"]
        told += [
            f"step {step} (the lab's {want['step']}): {name} {one!r}, in the trace {other!r}"
            for name, (one, other) in pairs.items()
            if one != other
        ]
        if len(told) >= most:
            break
    return told
