"""Reads the JSON texts of a trace. They may hold anything: a trace may come from a stranger."""

from __future__ import annotations

import json
from typing import Any

LONGEST = 1 << 24
"""Most characters of a JSON text that is read."""
DEEPEST = 64
"""Most levels of nesting."""


def read_json(text: str | None) -> Any:
    """The value of a JSON text; None if the text is NULL.

    Raises:
        ValueError: the text is no JSON, too long, or nested too deep.
    """
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
    """The JSON object in a text. An empty dictionary if the text is NULL; None if it holds no JSON object."""
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
            for container in level
            if isinstance(container, (dict, list))
            for inner in (container.values() if isinstance(container, dict) else container)
        ]
    return depth
