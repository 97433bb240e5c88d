"""Who waited under one formula, as a dialog. Its lines lead to the steps at which the waits began."""

from __future__ import annotations

from fdtrace.replayer.analysis.wait_figures import blocking_requests, request_rows, totals_of, wait_rows
from fdtrace.replayer.analysis.waiting import Waits
from fdtrace.tui.inspector.story_screen import StoryScreen
from fdtrace.tui.report.wait_table import head_sentence, longest_sentence, total_sentences
from fdtrace.tui.theme import Look

MOST_HEADS, MOST_LONGEST = 20, 50
"""Heads of the queue and longest waits that are shown."""


class WaitsScreen(StoryScreen):
    """Its result is the step to go to, or None."""

    def __init__(self, waits: Waits, step: int, look: Look, classes: str = "") -> None:
        super().__init__((), step, look, classes=classes)
        self.waits = waits

    @property
    def heading(self) -> str:
        """The first line of the dialog."""
        return f"waits under {self.waits.name}"

    def lines(self) -> list[tuple[int | None, str]]:
        """Its other lines, each with the step that it leads to; None: it leads to no step."""
        waits = self.waits
        began: dict[str, int | None] = {}
        for row in wait_rows(waits):
            began.setdefault(row["request_id"], row["since_step"])
        heads, longest = blocking_requests(waits)[:MOST_HEADS], request_rows(waits)[:MOST_LONGEST]
        return [
            *((None, sentence) for sentence in total_sentences(totals_of(waits))),
            (None, ""),
            (None, "who was the head of the queue, most waited behind first"),
            *((head.first_step, f"{head.first_step:>8} {head_sentence(head)}") for head in heads),
            (None, ""),
            (None, "who waited longest"),
            *(
                (began[row["request_id"]], f"{began[row['request_id']]:>8} {longest_sentence(row)}")
                for row in longest
            ),
        ]
