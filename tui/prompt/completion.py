"""Completes the name of a setting while a variant is typed."""

from __future__ import annotations

import re
from collections.abc import Sequence

from textual.suggester import Suggester

_NAME = re.compile(r"(?:^|[:,])\s*([A-Za-z_]\w*)\Z")


class SettingNames(Suggester):
    """Suggests the rest of the setting that is being typed, after the variant's name or after a comma."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(case_sensitive=True)
        self.names = tuple(names)

    async def get_suggestion(self, value: str) -> str | None:
        """The whole line with the name completed; None if there is nothing to suggest."""
        return completed(value, self.names)


def completed(text: str, names: Sequence[str]) -> str | None:
    """A line with the setting's name at its end completed, plus an equals sign; None if no name begins so."""
    match = _NAME.search(text)
    if match is None:
        return None
    completion = next((name for name in names if name.startswith(match[1]) and name != match[1]), None)
    return None if completion is None else f"{text[: match.start(1)]}{completion}="
