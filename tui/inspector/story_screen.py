"""The story of one request under each formula, as a dialog. Its lines lead to their steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from fdtrace.recorder.printable import printable
from fdtrace.replayer.analysis.request_story import Decodes, PrefillChunk, RequestStory
from fdtrace.tui.theme import Look

MOST_PARTS = 200
"""At most so many segments of a story are shown."""


class StoryScreen(ModalScreen["int | None"]):
    """Its result is the step to go to, or None."""

    DEFAULT_CSS = """
    StoryScreen { align: center middle; }
    StoryScreen Vertical { width: 92; max-width: 100%; height: 90%; border: round $primary;
                           background: $surface; padding: 0 1; }
    StoryScreen OptionList { height: 1fr; border: none; background: $surface; padding: 0; }
    StoryScreen OptionList > .option-list--option-disabled { color: $foreground; text-style: bold; }
    StoryScreen.-ascii Vertical { border: ascii ansi_white; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,r", "close", "close", show=False),
        Binding("j", "down", "down", show=False),
        Binding("k", "up", "up", show=False),
    ]

    def __init__(self, stories: Sequence[RequestStory], step: int, look: Look, classes: str = "") -> None:
        super().__init__(classes=classes)
        self.stories, self.step, self.look = stories, step, look
        self._steps: list[int | None] = []

    @property
    def heading(self) -> str:
        """The first line of the dialog."""
        first = self.stories[0]
        prompt = "" if first.num_prompt_tokens is None else f", {first.num_prompt_tokens} prompt tokens"
        return f"request {first.request_id}{prompt}"

    def lines(self) -> list[tuple[int | None, str]]:
        """Its other lines, each with the step that it leads to; None: it leads to no step."""
        return [line for story in self.stories for line in story_lines(story, self.look)]

    def compose(self) -> ComposeResult:
        dot = self.look.glyphs.dot
        with Vertical():
            yield Static(printable(self.heading), markup=False)
            yield OptionList(compact=True)
            yield Static(f"Enter goes to a step {dot} j/k {dot} Esc closes", markup=False)

    def on_mount(self) -> None:
        options = self.query_one(OptionList)
        lines = self.lines()
        self._steps = [step for step, _ in lines]
        options.add_options([Option(Content(printable(text)), disabled=step is None) for step, text in lines])
        options.highlighted = next((at for at, step in enumerate(self._steps) if step is not None), None)
        options.focus()

    def action_close(self) -> None:
        """Close the dialog."""
        self.dismiss(None)

    def action_down(self) -> None:
        """Select the next line."""
        self.query_one(OptionList).action_cursor_down()

    def action_up(self) -> None:
        """Select the previous line."""
        self.query_one(OptionList).action_cursor_up()

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Close the dialog with the line's step."""
        self.dismiss(self._steps[event.option_index])


def story_lines(story: RequestStory, look: Look) -> list[tuple[int | None, str]]:
    """A story's lines, each with the step that it leads to; None: it leads to no step."""
    lines: list[tuple[int | None, str]] = [(None, f"{story.name}: {_sum(story)}")]
    if story.arrived is not None:
        lines.append((story.arrived, _line(story.arrived, "arrived")))
    for part in story.segments[:MOST_PARTS]:
        lines += _part(story, part)
    if len(story.segments) > MOST_PARTS:
        lines.append((None, f"    and {len(story.segments) - MOST_PARTS} more"))
    if story.finished is not None:
        reason_text = f" ({story.finish_reason})" if story.finish_reason else ""
        lines.append((story.finished, _line(story.finished, f"finished{reason_text}")))
    elif story.segments:
        lines.append((None, "         not finished in this history"))
    return [*lines, (None, "")]


def _sum(story: RequestStory) -> str:
    drafts = sum(part.num_draft_tokens for part in story.decodes)
    accepted = sum(part.num_accepted_tokens for part in story.decodes)
    forwards = sum(part.num_steps for part in story.decodes)
    steps_to_first = story.steps_to_first_token
    parts = [
        "time to first token unknown"
        if steps_to_first is None
        else f"first token after {steps_to_first} step{'s' * (steps_to_first != 1)}",
        f"{len(story.chunks)} chunk{'s' * (len(story.chunks) != 1)}",
        f"{forwards} decodes",
    ]
    if drafts:
        parts.append(f"{accepted} of {drafts} drafts accepted ({accepted / drafts:.0%})")
    if story.restarts:
        parts.append(
            f"preempted {len(story.restarts)} times" if len(story.restarts) > 1 else "preempted once"
        )
    return ", ".join(parts)


def _part(story: RequestStory, part: PrefillChunk | Decodes) -> list[tuple[int | None, str]]:
    if isinstance(part, PrefillChunk):
        lines: list[tuple[int | None, str]] = []
        if part.step in story.restarts:
            lines.append((part.step, _line(part.step, "begins anew: it had been preempted")))
        prefill_text = f"prefill {part.num_tokens} tokens, {part.num_computed_tokens} computed before"
        first_text = ": its first token" if part.step == story.first_token else ""
        return [*lines, (part.step, _line(part.step, prefill_text + first_text))]
    last_text = f" to {part.last}" if part.last != part.first else ""
    drafts = ""
    if part.num_draft_tokens:
        drafts = f", {part.num_accepted_tokens} of {part.num_draft_tokens} drafts accepted"
    return [(part.first, _line(part.first, f"{part.num_steps} decodes{last_text}{drafts}"))]


def _line(step: int, text: str) -> str:
    return f"{step:>8} {text}"
