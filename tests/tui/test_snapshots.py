"""How the screen looks, at three sizes. `--snapshot-update` takes them anew; look at them before committing."""

from __future__ import annotations

from typing import Any

import pytest
from textual.pilot import Pilot

from tests.tui.screens import case_app, lab_app, quiet, settled

SIZES = [(80, 24), (100, 30), (200, 50)]


@pytest.mark.parametrize("size", SIZES)
def test_three_formulas_side_by_side(snap_compare: Any, size: tuple[int, int]) -> None:
    async def ready(pilot: Pilot[None]) -> None:
        await settled(pilot)
        await pilot.press("5", "0", "n")
        await settled(pilot)

    assert snap_compare(lab_app(), terminal_size=size, run_before=ready)


@pytest.mark.parametrize("size", SIZES)
def test_why_an_exceeded_step_of_tight_blocks_exceeds(snap_compare: Any, size: tuple[int, int]) -> None:
    async def ready(pilot: Pilot[None]) -> None:
        await quiet(pilot)
        await pilot.press("2", "enter")
        await quiet(pilot)

    app = case_app("tight_blocks", ["pr7438", "pr7499", "pr7623"])
    assert snap_compare(app, terminal_size=size, run_before=ready)


def test_formulas_that_hang(snap_compare: Any) -> None:
    async def ready(pilot: Pilot[None]) -> None:
        await quiet(pilot)

    app = case_app("full_reservation", ["pr7438", "pr7499", "pr7623"])
    assert snap_compare(app, terminal_size=(200, 50), run_before=ready)
