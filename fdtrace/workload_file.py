"""Reads the file of a workload, one JSON object. The error for each fault says what to do about it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fdtrace.recorder.errors import UsageError

SHAPE = (
    'one object: {"max_num_batched_tokens": 1024, "max_num_seqs": 64, "num_blocks": 900, "requests": '
    '[{"id": "a", "arrival": 0, "prompt": 100, "output": 20}]}'
)
MOST_DIGITS = 18
"""Most digits of a number. No size needs more, and Python's `int` refuses very long numbers."""
LARGE: int = 10**MOST_DIGITS


class _Repeated(dict[str, Any]):
    """A JSON object that has a key twice."""

    key = ""


def read_case(path: Path) -> Any:
    """The case in the file; a request trace, as of Mooncake, becomes one with the defaults of docs/workloads.md.

    Raises:
        UsageError: it cannot be read, or is not one JSON value.
    """
    from fdtrace.request_traces.recognise import recognised_format
    from fdtrace.request_traces.trace_case import case_of_trace

    known = recognised_format(path)
    if known is not None:
        return case_of_trace(path, known)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UsageError(f"{path} cannot be read", why=error.strerror or str(error)) from None
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path} is no JSON", why=f"it is not UTF-8: {error.reason} at byte {error.start}"
        ) from None
    return _parse(path, text)


def _parse(path: Path, text: str) -> Any:
    repeated: list[_Repeated] = []

    def pairs(members: list[tuple[str, Any]]) -> dict[str, Any]:
        by_name = dict(members)
        if len(by_name) == len(members):
            return by_name
        names = [name for name, _ in members]
        twice = _Repeated(by_name)
        twice.key = next(name for name in names if names.count(name) > 1)
        repeated.append(twice)
        return twice

    try:
        case = json.loads(text, object_pairs_hook=pairs, parse_int=_whole, parse_constant=_no_number)
    except RecursionError:
        raise UsageError(
            f"{path} is no workload", why="its lists or objects are nested too deep", hint=SHAPE
        ) from None
    except json.JSONDecodeError as error:
        raise _no_json(path, text, error) from None
    if repeated:
        place = _path_to(case, repeated[0], "")
        raise UsageError(
            f"{path}: the key `{repeated[0].key:.80}` is there twice{f' in `{place}`' if place else ''}",
            why="only one of its values would be read",
            hint="remove one of them",
        )
    return case


def _whole(digits: str) -> int:
    if len(digits) <= MOST_DIGITS:
        return int(digits)
    return -LARGE if digits.startswith("-") else LARGE


def _no_number(name: str) -> Any:
    raise UsageError(f"{name} is no number of JSON", hint="write a number, or leave the key out")


def _no_json(path: Path, text: str, error: json.JSONDecodeError) -> UsageError:
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        return UsageError(f"{path} is empty", hint=SHAPE)
    if len(lines) > 1 and all(_is_json(line) for line in lines[:2]):
        return UsageError(
            f"{path} is no JSON but JSON lines: a value in each line",
            why=f"a workload is {SHAPE}",
            hint="if it is a request trace: fdtrace workload FILE --format NAME; else put the sizes of the scheduler "
            "and the list of `requests` into one object",
        )
    return UsageError(f"{path} is no JSON", why=str(error), hint=f"a workload is {SHAPE}")


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _path_to(value: Any, target: Any, path: str) -> str:
    """The path from a JSON value to an object inside it, such as `requests[3]`; empty: it is not inside."""
    if value is target or not isinstance(value, (dict, list)):
        return path if value is target else ""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        inner_path = f"{path}[{key}]" if isinstance(key, int) else f"{path}.{key}".lstrip(".")
        if inner is target or (found_path := _path_to(inner, target, inner_path)):
            return inner_path if inner is target else found_path
    return ""
