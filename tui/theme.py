"""Colours and glyphs of the screen: with block characters, or in plain ASCII with 16 colours."""

from __future__ import annotations

from dataclasses import dataclass, field

from rich.style import Style


@dataclass(frozen=True)
class Glyphs:
    """The characters that charts are drawn with. `area`, `above` and `memory` hold nine heights, from none to a full
    cell.
    """

    area: str
    above: str
    memory: str
    fence: str
    breach: str
    exceeded: str
    cut: str
    axis: str
    tick: str
    label: str
    departs: str
    hang: str
    lost: str
    cursor: str
    dot: str
    ellipsis: str
    border: str
    mixes: bool
    at_most: str
    other: str
    departure: str
    stop: str


BLOCKS = Glyphs(
    area=" ▁▂▃▄▅▆▇█",
    above=" ▁▂▃▄▅▆▇█",
    memory=" ▁▂▃▄▅▆▇█",
    fence="─",
    breach="█",
    exceeded="▲",
    cut="↑",
    axis="│",
    tick="╵",
    label="┤",
    departs="◆",
    hang="╳",
    lost="░",
    cursor="│",
    dot="·",
    ellipsis="…",
    border="round",
    mixes=True,
    at_most="≤",
    other="╌",
    departure="┊",
    stop="●",
)

ASCII = Glyphs(
    area=" ...::::#",
    above=" !!!!!!!!",
    memory=" ___---==",
    fence="-",
    breach="!",
    exceeded="^",
    cut="^",
    axis="|",
    tick="'",
    label="+",
    departs="D",
    hang="x",
    lost="?",
    cursor="|",
    dot="-",
    ellipsis="~",
    border="ascii",
    mixes=False,
    at_most="<=",
    other="~",
    departure=":",
    stop="*",
)


@dataclass(frozen=True)
class Palette:
    """Styles by meaning. Each meaning also has a glyph or a word: colour is never the only sign."""

    blank: Style
    mean: Style
    peak: Style
    mixed: Style
    exceeded: Style
    limit: Style
    memory: Style
    axis: Style
    event: Style
    departs: Style
    cursor: Style
    cursor_blank: Style
    head: Style
    dim: Style
    good: Style
    strong: Style
    other_mean: Style
    other_peak: Style
    other_mixed: Style


def _palette(colours: str) -> Palette:
    """A palette of eleven colours: mean, peak, exceeded, limit, memory, axis, event, departs, cursor; then mean and
    peak of a history that has departed from the recording.
    """
    mean, peak, exceeded, limit, memory, axis, event, departs, cursor, other, other_peak = colours.split()
    parse = Style.parse
    return Palette(
        blank=Style.null(),
        mean=parse(mean),
        peak=parse(peak),
        mixed=parse(f"{mean} on {peak}"),
        exceeded=parse(f"bold {exceeded}"),
        limit=parse(limit),
        memory=parse(memory),
        axis=parse(axis),
        event=parse(f"bold {event}"),
        departs=parse(f"bold {departs}"),
        cursor=parse(f"on {cursor}"),
        cursor_blank=parse(f"bold {event} on {cursor}"),
        head=parse("bold"),
        dim=parse(axis),
        good=parse(mean),
        strong=parse("bold"),
        other_mean=parse(other),
        other_peak=parse(other_peak),
        other_mixed=parse(f"{other} on {other_peak}"),
    )


DARK = _palette("#5fb0dc #2d5b7c #ff5555 #d75f5f #b48ead #8794a6 #f0c060 #7fd6a0 #4a5368 #8fc98f #3f6a4a")
LIGHT = _palette("#1f6fa5 #9cc3dd #cc0000 #b04040 #8a5a9a #5f6b7a #8a6000 #1a7a45 #cdd6e4 #3f8f4f #b5d6b5")
ANSI = _palette("cyan blue bright_red red magenta white yellow green bright_black bright_green green")


@dataclass(frozen=True)
class Look:
    """The glyphs and colours of the screen; `base` is the style of the widget that is drawn."""

    glyphs: Glyphs
    palette: Palette
    base: Style = field(default_factory=Style.null)

    @property
    def css_class(self) -> str:
        """The CSS class of widgets with a border in plain ASCII; empty on other terminals."""
        return "-ascii" if self.glyphs.border == "ascii" else ""


def tokens(value: float) -> str:
    """A count in at most five characters: 1436, 16384, 104k, 1.2M."""
    return _short(value, 1000, ("", "k", "M", "G"), 99_999)


def memory_size(value: float) -> str:
    """Bytes in at most six characters: 512B, 3.2G, 55G."""
    return _short(value, 1024, ("B", "K", "M", "G", "T"), 1023)


def _short(value: float, base: int, units: tuple[str, ...], plain: int) -> str:
    if abs(value) <= plain:
        return f"{value:.0f}{units[0]}"
    power = 0
    while abs(value) >= base and power < len(units) - 1:
        value, power = value / base, power + 1
    return f"{value:.{0 if abs(value) >= 10 else 1}f}{units[power]}"
