"""Reads the JSON texts of a trace, whatever they hold."""

from __future__ import annotations

import json
from typing import Any

LONGEST = 1 << 24
"""Characters of a JSON text that is read."""
DEEPEST = 64
"""Levels of nesting."""


def read_json(text: str | None) -> Any:
    """The value of a JSON text; None where it is NULL. ValueError where it is none, or too long or too deep."""
    if text is None:
        return None
    if len(text) > LONGEST:
        raise ValueError(f"{len(text)} characters of JSON, at most {LONGEST} are read")
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("JSON that is nested too deep") from None
    if _depth(value) > DEEPEST:
        raise ValueError(f"JSON that is nested more than {DEEPEST} deep")
    return value


def json_object(text: str | None) -> dict[str, Any] | None:
    """The object that a JSON text is; empty where the text is NULL; None where it is something else."""
    try:
        value = read_json(text)
    except ValueError:
        return None
    if value is None:
        return {}
    return value if isinstance(value, dict) else None


def _depth(value: Any) -> int:
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > DEEPEST:
            break
        level = [
            inner
            for one in level
            if isinstance(one, (dict, list))
            for inner in (one.values() if isinstance(one, dict) else one)
        ]
    return depth
