"""Steps as they are typed: 123, +50, -50, 25%, $."""

from __future__ import annotations


def parse_step(text: str, cursor: int, low: int, high: int) -> int | None:
    """The step that `text` names, limited to `low` … `high`; None: it names no step."""
    text = text.strip().lstrip(":").strip()
    digits = text.lstrip("+-").rstrip("%")
    if text in ("$", "end"):
        return high
    if not digits.isascii() or not digits.isdigit() or text.count("+") + text.count("-") > 1:
        return None
    number = int(digits)
    if text.endswith("%"):
        step = low + (high - low) * number // 100
    elif text[0] in "+-":
        step = cursor + (number if text[0] == "+" else -number)
    else:
        step = number
    return max(low, min(high, step))
