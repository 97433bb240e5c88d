"""The head of a live screen says first that the engine stands still, and why; and no more once something moves."""

from __future__ import annotations

from dataclasses import replace

from textual.widgets import Static

from fdtrace.tui.app import ReplayApp
from fdtrace.tui.sources import NewSteps
from tests.tui.screens import until
from tests.tui.test_live import Growing

STILL = "NOTHING MOVES since 12:00:01: request a[b]c at the head of the queue lacks 3 KV blocks"


class Hanging(Growing):
    """A recording whose engine stands still as long as it is let."""

    standstill = ""

    def tail(self, step: int) -> NewSteps:
        return replace(super().tail(step), standstill=self.standstill)


async def test_the_head_says_that_nothing_moves_as_long_as_that_is_so() -> None:
    hanging = Hanging(20)
    async with hanging.app().run_test(size=(150, 30)) as pilot:
        app = pilot.app
        assert isinstance(app, ReplayApp)

        def head() -> str:
            return str(app.query_one("#head", Static).content)

        await until(pilot, lambda: "RECORDING" in head())
        assert "NOTHING" not in head()
        hanging.standstill = STILL
        await until(pilot, lambda: STILL in head())
        assert head().index(STILL) < head().index("limit")
        hanging.standstill, hanging.count = "", 30
        await until(pilot, lambda: len(app.session.recorded) == 30 and "NOTHING" not in head())
