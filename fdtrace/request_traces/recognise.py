"""Finds out what a file is by its first bytes: a trace of fdtrace's, a case, or a request trace and of which format."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping
from pathlib import Path

from fdtrace.recorder.errors import UsageError
from fdtrace.request_traces.safe_json import LONGEST_PIECE, open_trace_file
from fdtrace.request_traces.trace_formats import FORMATS, TraceFormat

HEAD = 1 << 16
DUCKDB = b"DUCK"
"""At byte 8 of every DuckDB file."""
CASE_KEYS = {"requests", "max_num_batched_tokens", "max_num_seqs", "num_blocks"}
IN_CASE = re.compile(rf'"({"|".join(sorted(CASE_KEYS))})"\s*:')
STEP_METRICS = "fpm"
COLUMNS = {
    "azure": {"TIMESTAMP", "ContextTokens", "GeneratedTokens"},
    "burstgpt": {"Timestamp", "Request tokens", "Response tokens"},
    "guidellm": {"prompt_tokens_count", "output_tokens_count"},
}
"""Columns by which a CSV file is recognised."""


def recognised_format(path: Path) -> TraceFormat | None:
    """The format of a request trace; None: the file is something else, as a case or a DuckDB file.

    Raises:
        UsageError: the file cannot be read, or holds no request.
    """
    with open_trace_file(path) as file:
        try:
            head = file.read(HEAD)
            if head[8:12] == DUCKDB:
                return None
            text = head.decode("utf-8-sig", errors="replace").lstrip()
            line = text.partition("\n")[0]
            if text.startswith("{") and "\n" not in text and len(head) == HEAD:  # its first line is long
                if IN_CASE.search(text):
                    return None
                line = (head + file.readline(LONGEST_PIECE)).decode("utf-8-sig", errors="replace")
        except (OSError, EOFError) as error:
            raise UsageError(f"{path} cannot be read", why=str(error)) from None
    name = _name_of(text, line)
    if name == STEP_METRICS:
        raise UsageError(
            f"{path} holds ForwardPassMetrics, and no request",
            why="each line sums up one forward: what a request was, and when it came, cannot be had from sums",
            hint=f"fdtrace import {path} -o T.duckdb makes a trace of its steps",
        )
    return None if name is None else FORMATS[name]


def _name_of(text: str, line: str) -> str | None:
    if text.startswith("["):
        return "sharegpt" if text[1:].lstrip().startswith("{") else None
    if not text.startswith("{"):
        return _by_columns(line)
    begin = "".join(text[:200].split())
    if begin.startswith('{"data":['):
        return "aiperf-inputs"
    try:
        first = json.loads(line, parse_int=len)  # no number matters here, and Python refuses very long ones
    except (ValueError, RecursionError):
        return None
    return _by_keys(first) if isinstance(first, Mapping) and not CASE_KEYS & first.keys() else None


def _by_columns(line: str) -> str | None:
    try:
        columns = {name.strip() for name in next(csv.reader([line]), [])}
    except csv.Error:
        return None
    return next((name for name, needed in COLUMNS.items() if needed <= columns), None)


def _by_keys(first: Mapping[str, object]) -> str | None:
    keys = set(first)
    if step_metrics(first) is not None:
        return STEP_METRICS
    if "chat_id" in keys and "input_length" in keys:
        return "bailian"
    if keys & {"input_length", "text_input", "payload"} or ("messages" in keys and "output_length" in keys):
        return "mooncake"
    if keys & {"text", "texts", "turns"}:
        return "aiperf"
    if keys & {"prompt_tokens_count", "input_tokens_count"} or {"prompt", "output_tokens_count"} <= keys:
        return "guidellm"
    return "vllm" if "prompt" in keys else None


def step_metrics(value: Mapping[str, object]) -> Mapping[str, object] | None:
    """The ForwardPassMetrics that an object is, or that it holds as Dynamo's programs write them; None: there are none.

    `event.fpm`: its FPM trace; `metrics`: `recv_forward_pass_metrics --output`, `export_forward_pass_metrics`.
    """
    event = value.get("event")
    held = event.get("fpm") if isinstance(event, Mapping) else None
    for found in (value, held, value.get("fpm"), value.get("metrics")):
        if isinstance(found, Mapping) and "scheduled_requests" in found:
            return found
    return None


def format_of(path: Path, given: str | None) -> TraceFormat:
    """The format that `--format` names, else the one that is recognised.

    Raises:
        UsageError: there is none of that name, or the file is recognised as none.
    """
    if given is not None:
        if given not in FORMATS:
            raise UsageError(f"there is no format {given!r}", hint=f"--format {' | '.join(FORMATS)}")
        return FORMATS[given]
    found = recognised_format(path)
    if found is None:
        raise UsageError(
            f"{path} is no request trace that fdtrace knows",
            why="neither its first object's keys nor its columns are those of a known format",
            hint=f"--format {' | '.join(FORMATS)}; --label input_length=NAME if its fields have other names",
        )
    return found
