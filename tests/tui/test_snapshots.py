"""How the screen looks, at two sizes. `--snapshot-update` takes them anew; look at them before committing."""

from __future__ import annotations

from typing import Any

import pytest
from textual.pilot import Pilot

from tests.tui.screens import lab_app, settled


@pytest.mark.parametrize("size", [(100, 30), (80, 24)])
def test_three_formulas_side_by_side(snap_compare: Any, size: tuple[int, int]) -> None:
    async def ready(pilot: Pilot[None]) -> None:
        await settled(pilot)
        await pilot.press("5", "0", "n")
        await settled(pilot)

    assert snap_compare(lab_app(), terminal_size=size, run_before=ready)
