"""The inspector, and the story of a request."""

from __future__ import annotations

from rich.style import Style
from rich.text import Text
from textual.css.query import NoMatches

from fdtrace.recorder.printable import printable
from fdtrace.recorder.recording import Recording
from fdtrace.replayer.story import Story, story_of
from fdtrace.tui.background import Cancelled, Deliver
from fdtrace.tui.inspection import Inspection, Inspector, Subject
from fdtrace.tui.panel import InspectorPanel
from fdtrace.tui.paneling import Paneling
from fdtrace.tui.requests import RequestTable
from fdtrace.tui.story import StoryScreen
from fdtrace.tui.summary import absence
from fdtrace.tui.wording import inspection_lines

TITLE = Style(bold=True, underline=True)


class Looking(Paneling):
    """Tells why: of a step under each formula shown, and of a request."""

    def prepare(self) -> None:
        super().prepare()
        self.inspecting = False
        self._inspector = Inspector(self.recording, self.sources)
        self._found: dict[int, Inspection] = {}
        self._inspections = self.background("inspector", self._inspected, self.show_failure)
        self._stories = self.background("story", self._told, self.show_failure)

    # The inspector

    def action_inspect(self) -> None:
        """Open the inspector, or close it."""
        self.inspecting = not self.inspecting
        self.show_parts()
        if self.inspecting:
            self.call_after_refresh(self._inspect)
        else:
            self._inspections.drop()
            self.show_step()

    def on_inspector_panel_closed(self) -> None:
        """A double click on the inspector closes it."""
        if self.inspecting:
            self.action_inspect()

    def show_step(self) -> None:
        super().show_step()
        if self.inspecting:
            self._inspect()

    def _inspect(self) -> None:
        """Ask for what the inspector shows; what it has of the last step stays until that is there."""
        try:
            panel = self.query_one(InspectorPanel)
        except NoMatches:
            return
        shown = [at for at, pane in enumerate(self.panes) if pane.display]
        order, width = panel.places(shown, self.board.active)
        step = self.board.cursor
        subjects = [
            Subject(at, self.panes[at].job.replay, self.panes[at].series, self._absence(at, step))
            for at in order
        ]
        self._order, self._width = order, width

        def work(deliver: Deliver[Inspection], cancelled: Cancelled) -> None:
            self._inspector.inspect(subjects, step, deliver, cancelled)

        self._inspections.want(work)

    def _absence(self, at: int, step: int) -> str:
        pane = self.panes[at]
        if pane.series is not None and pane.series.index(step) is not None:
            return ""
        return pane.note or absence(pane.series, step)

    def _inspected(self, found: Inspection) -> None:
        if not self.inspecting:
            return
        self._found[found.at] = found
        look, step = self.look(), self.board.cursor
        lines: dict[int, list[Text]] = {}
        for at in self._order:
            have = self._found.get(at)
            title = Text(printable(f"{self.panes[at].number} {self.panes[at].job.replay.name}"), TITLE)
            if have is not None and have.step == step:
                lines[at] = [title, *inspection_lines(have, self._width - 1, look)]
        active = self.active_pane.job.replay.name
        more = "" if len(self._order) > 1 else f" {self.glyphs.dot} {active}, Tab: the next pane"
        panel = self.query_one(InspectorPanel)
        panel.show(self._order, lines, self._width, f"why: step {step}{more}")

    # Stories

    def action_story(self) -> None:
        """The story of the selected request; without one, ask which."""
        table = self.query_one(RequestTable)
        if table.selected is None and len(table.rows) == 1:
            table.selected = table.rows[0].request_id
        if table.selected is None:
            self.ask("request")
        else:
            self.tell_story(table.selected)

    def on_request_table_chosen(self, message: RequestTable.Chosen) -> None:
        """A click on the selected request."""
        self.tell_story(message.request_id)

    def tell_story(self, text: str) -> None:
        """Show the story of the request with an id, or with a part of one."""
        panes = [pane for pane in self.panes if pane.series is not None]
        histories = [pane.series.history for pane in panes if pane.series is not None]
        self.show_status(f"reading the steps of {text}")

        def work(deliver: Deliver[list[Story | None]], cancelled: Cancelled) -> None:
            recording = self._inspector.recording_now()
            wanted = named(text, recording)
            stories: list[Story | None] = []
            for history in histories:
                if cancelled():
                    return
                stories.append(story_of(recording, history, wanted))
            deliver(stories)

        self._stories.want(work)

    def _told(self, stories: list[Story | None]) -> None:
        self.show_status()
        known = [story for story in stories if story is not None and (story.parts or story.arrived)]
        if not known:
            self.show_status("no step of that request is known here")
            return
        screen = StoryScreen(known, self.board.cursor, self.look(), "-ascii" if self.ascii else "")
        self.push_screen(screen, self._leave_story)

    def _leave_story(self, step: int | None) -> None:
        if step is not None:
            self.go(step, jump=True)

    # Rows and the inspector scroll by the same keys

    def action_scroll(self, rows: int) -> None:
        """The next row, or the one before; the inspector scrolls."""
        count = self.take_count() or 1
        if self.inspecting:
            self.query_one(InspectorPanel).scroll_rows(rows * count)
        else:
            self.query_one(RequestTable).select(rows * count)

    def action_scroll_page(self, pages: int) -> None:
        """A page of rows."""
        if self.inspecting:
            self.query_one(InspectorPanel).scroll_pages(pages)
        else:
            self.query_one(RequestTable).scroll_pages(pages)

    def action_escape(self) -> None:
        """Close what is open."""
        self.take_count()
        if self.inspecting:
            self.action_inspect()
            return
        table = self.query_one(RequestTable)
        table.selected = None
        table.filter("")
        self.show_status()


def named(text: str, recording: Recording) -> str:
    """The id of a request that is, or else holds, a text; the text itself where none does."""
    ids = recording.requests.get("request_id")
    known = [] if ids is None else ids.tolist()
    if text in known:
        return text
    return next((one for one in known if text.lower() in str(one).lower()), text)
