"""Completes the name of a setting while a variant is typed."""

from __future__ import annotations

import re
from collections.abc import Sequence

from textual.suggester import Suggester

_NAME = re.compile(r"(?:^|[:,])\s*([A-Za-z_]\w*)\Z")


class SettingNames(Suggester):
    """Suggests how the setting goes on that is being typed: behind the variant's name, or behind a comma."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(case_sensitive=True)
        self.names = tuple(names)

    async def get_suggestion(self, value: str) -> str | None:
        """The whole line with the name completed; None where nothing is to be said."""
        return completed(value, self.names)


def completed(text: str, names: Sequence[str]) -> str | None:
    """A line with the name of a setting at its end completed, and an equals sign; None where none begins so."""
    match = _NAME.search(text)
    if match is None:
        return None
    found = next((name for name in names if name.startswith(match[1]) and name != match[1]), None)
    return None if found is None else f"{text[: match.start(1)]}{found}="
