"""The model's theory of operation says what its table of transitions says."""

from __future__ import annotations

import re

from fdtrace.replayer import model
from fdtrace.replayer.model.request import TRANSITIONS, Status


def test_the_states_in_the_theory_are_those_of_the_table() -> None:
    text = model.__doc__ or ""
    lines = re.findall(r"^    (\w+) +-> (.+)$", text, re.MULTILINE)
    written = {name: set() if follow == "(none)" else set(follow.split(", ")) for name, follow in lines}
    assert written == {status.value: {one.value for one in after} for status, after in TRANSITIONS.items()}
    assert set(written) == {status.value for status in Status}
