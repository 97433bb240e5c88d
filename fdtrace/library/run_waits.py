"""The waits of a run for programs: each wait, each request, each head of the queue, and all together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from fdtrace.library.result_table import ResultTable
from fdtrace.replayer.analysis.wait_figures import (
    WaitTotals,
    blocking_requests,
    request_rows,
    totals_of,
    wait_rows,
)
from fdtrace.replayer.analysis.waiting import Waits


class RunWaits:
    """Who waited in a run, how long, for what and behind whom. docs/waiting.md defines each term."""

    def __init__(self, waits: Waits) -> None:
        self._waits = waits

    @property
    def totals(self) -> WaitTotals:
        """All waits together, in steps, tokens, requests and microseconds as the names say."""
        return totals_of(self._waits)

    @property
    def each(self) -> ResultTable:
        """A row a wait, by when it began: `request_id`, `kind`, `since_step`, `until_step`, `num_steps`, `us`,
        `num_head_steps`, `behind`, `num_behind_steps`, `not_admitted`, `num_discarded_tokens`.
        """
        return ResultTable.of_rows(wait_rows(self._waits), title=f"waits of {self._waits.name}")

    @property
    def requests(self) -> ResultTable:
        """A row a request that waited, the longest first: its steps of each kind, restarts, tokens computed again."""
        return ResultTable.of_rows(
            request_rows(self._waits), title=f"waits of {self._waits.name}, by request"
        )

    @property
    def heads(self) -> ResultTable:
        """A row a request that was the head of the waiting queue, those first that most waited behind."""
        rows = [asdict(head) for head in blocking_requests(self._waits)]
        return ResultTable.of_rows(rows, title=f"heads of the queue of {self._waits.name}")

    def __repr__(self) -> str:
        totals = self.totals
        return (
            f"<RunWaits of {self._waits.name}: {totals.num_queued} of {totals.num_requests} requests waited to run, "
            f"{totals.max_queued_steps} steps at most; {totals.num_restarts} restarts>"
        )


def table_of_waits(waits: Mapping[str, Waits]) -> ResultTable:
    """A row a run: its totals side by side."""
    return ResultTable.of_rows(
        [_row(name, totals_of(run_waits)) for name, run_waits in waits.items()], title="waits"
    )


def _row(name: str, totals: WaitTotals) -> dict[str, Any]:
    figures = asdict(totals)
    blocked = figures.pop("steps_blocked")
    for percentiles in ("queued_steps", "queued_us"):
        spread = figures.pop(percentiles)
        figures |= {f"{percentiles}_{share}": value for share, value in spread.items()}
    blocked_text = ", ".join(f"{reason} {steps}" for reason, steps in blocked.items())
    return {
        "name": name,
        **figures,
        "num_steps_blocked": sum(blocked.values()),
        "steps_blocked": blocked_text or None,
    }
