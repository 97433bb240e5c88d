"""Makes text that fdtrace did not write safe to print: a terminal must not act on what a trace holds."""

from __future__ import annotations

import unicodedata

MAX_SHOWN = 2000
"""Most characters of one text that are shown. How many it has in all is printed behind them."""

SPACES = "Zs"
"""Unicode's category of spaces. `str.isprintable` rejects them, but a terminal only prints a gap."""


def printable(text: object, limit: int = MAX_SHOWN) -> str:
    r"""`text` on one line, without anything on which a terminal would act.

    Control characters (C0, DEL, C1), line ends, invisible characters, characters that change the direction of writing,
    and lone surrogates become escapes as in Python: `\x1b`, `\u202e`. All else stays as it is, also the markup of Rich:
    put the result into a `rich.text.Text`, never into markup.

    Args:
        text: any value; a value that is no str is converted.
        limit: characters kept; a longer text ends with `…` and its length.
    """
    value = text if isinstance(text, str) else str(text)
    length = len(value)
    if length > limit:
        value = value[:limit]
    if not value.isprintable():
        value = "".join(map(_escaped, value))
    return value if length <= limit else f"{value}… ({length:,} characters)"


def printable_lines(text: object, indent: str = "", limit: int = MAX_SHOWN) -> str:
    """As `printable`, but line ends stay. Each line after the first begins with `indent`: no line of a foreign text can
    look like one of fdtrace's own.
    """
    value = text if isinstance(text, str) else str(text)
    lines = value[:limit].expandtabs().split("\n")
    shown = ("\n" + indent).join(printable(line, limit) for line in lines)
    return shown if len(value) <= limit else f"{shown}… ({len(value):,} characters)"


def _escaped(character: str) -> str:
    if character.isprintable() or unicodedata.category(character) == SPACES:
        return character
    return character.encode("unicode_escape").decode("ascii")
