"""Text from elsewhere is shown escaped: nothing in it acts on a terminal, and no line of it passes for ours."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fdtrace.recorder.errors import FdtraceError
from fdtrace.recorder.printable import printable, printable_lines

ANY = st.text(st.characters(codec=None, exclude_categories=()), max_size=60)


@given(ANY)
def test_nothing_acts_on_a_terminal(text: str) -> None:
    shown = printable(text)
    assert all(unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Zl", "Zp", "Cn", "Co") for c in shown)
    shown.encode("utf-8")
    assert printable(shown) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, größer, 漢字, [b]x[/b]", "plain, größer, 漢字, [b]x[/b]"),
        ("\x1b[31mred\x07", r"\x1b[31mred\x07"),
        ("a\x00b\x7fc\x9bd\re\nf\tg", r"a\x00b\x7fc\x9bd\re\nf\tg"),
        ("\u202eevil\u2066\u200b\ufeff", r"\u202eevil\u2066\u200b\ufeff"),
        ("\udcff", r"\udcff"),
        ("\U000e0041", r"\U000e0041"),
        ("a\u00a0b\u3000c", "a\u00a0b\u3000c"),
        (None, "None"),
        (7, "7"),
    ],
)
def test_samples(text: object, shown: str) -> None:
    assert printable(text) == shown


def test_a_long_text_is_cut_and_says_how_long_it_is() -> None:
    assert printable("x" * 3000, 10) == "xxxxxxxxxx… (3,000 characters)"


def test_lines_of_an_error_cannot_be_forged() -> None:
    error = FdtraceError("a file\nfdtrace: all is well", why="no\x1b[2J\nfdtrace: done", hint="x\rfdtrace: y")
    lines = str(error).splitlines()
    assert [line for line in lines[1:] if not line.startswith("  ")] == []
    assert "\x1b" not in str(error)
    assert r"x\rfdtrace: y" in str(error)
    assert printable_lines("a\n\tb", "  ") == "a\n          b"
