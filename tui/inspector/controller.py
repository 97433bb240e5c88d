"""The inspector of a step under each shown formula, and the stories of requests."""

from __future__ import annotations

from rich.style import Style
from rich.text import Text

from fdtrace.recorder.printable import printable
from fdtrace.recorder.trace.recording import Recording
from fdtrace.replayer.analysis.request_story import RequestStory, story_of
from fdtrace.replayer.analysis.waiting import Waits, waits_of
from fdtrace.replayer.history.recording_lives import with_recorded_lives
from fdtrace.replayer.rank_experiment import RankRun
from fdtrace.replayer.replay.workload_replay import Cancelled
from fdtrace.tui.background import Deliver
from fdtrace.tui.inspector.inspector import InspectedPane, Inspection, Inspector
from fdtrace.tui.inspector.ranks_screen import RanksScreen
from fdtrace.tui.inspector.story_screen import StoryScreen
from fdtrace.tui.inspector.text import inspection_lines
from fdtrace.tui.inspector.waits_screen import WaitsScreen
from fdtrace.tui.panes.controller import Panes
from fdtrace.tui.screen_protocol import Prompter, ReplayScreen
from fdtrace.tui.tables.lower_area import LowerArea

TITLE = Style(bold=True, underline=True)


class InspectorController:
    """Opens the inspector in the area below the charts, and shows the stories of requests."""

    def __init__(self, screen: ReplayScreen, panes: Panes, lower: LowerArea, prompt: Prompter) -> None:
        self.screen, self.panes, self.lower, self.prompt = screen, panes, lower, prompt
        session = screen.session
        self.model = Inspector(session.recording, session.sources)
        self._inspected: dict[int, Inspection] = {}
        self._order: list[int] = []
        self._width = 0
        self._inspections = screen.background("inspector", self._show_inspection, screen.fail)
        self._stories = screen.background("story", self._show_stories, screen.fail)
        self._waits = screen.background("waits", self._show_waits, screen.fail)
        self._ranks = screen.background("ranks", self._show_ranks, screen.fail)
        self._ranks_dialog: RanksScreen | None = None

    def begin(self) -> None:
        """Open what was asked for on the command line."""
        if self.screen.session.sources.opens_ranks:
            self.ranks()

    # The inspector

    def inspect(self) -> None:
        """Open the inspector, or close it."""
        if not self.close():
            self.open()

    def open(self) -> None:
        """Open the inspector if it is not open."""
        if not self.lower.inspecting:
            self.lower.inspect()
            self.screen.show_step()
            self.screen.call_after_refresh(self.show_step)

    def close(self) -> bool:
        """Close the inspector. Returns whether it was open."""
        if not self.lower.inspecting:
            return False
        self.lower.leave_inspector()
        self._inspections.drop()
        self.screen.show_step()
        return True

    def show_step(self) -> None:
        """Request what the inspector shows. Until it is there, the inspector keeps showing the last step."""
        if not self.lower.inspecting or not self.lower.inspector.size.width:
            return  # it is not open, or has no place on the screen yet
        session = self.screen.session
        shown = [at for at, pane in enumerate(self.panes) if pane.display]
        self._order, self._width = self.lower.inspector.places(shown, session.active)
        step = session.cursor
        subjects = [
            InspectedPane(
                at,
                self.panes[at].job.replay,
                self.panes[at].series,
                self.panes.absence_text(self.panes[at], step),
            )
            for at in self._order
        ]

        def work(deliver: Deliver[Inspection], cancelled: Cancelled) -> None:
            self.model.inspect(subjects, step, deliver, cancelled)

        self._inspections.want(work)

    def _show_inspection(self, new: Inspection) -> None:
        if not self.lower.inspecting:
            return
        self._inspected[new.at] = new
        look, step = self.screen.look(), self.screen.session.cursor
        lines: dict[int, list[Text]] = {}
        for at in self._order:
            inspection = self._inspected.get(at)
            title = Text(printable(f"{self.panes[at].number} {self.panes[at].job.replay.name}"), TITLE)
            if inspection is not None and inspection.step == step:
                lines[at] = [title, *inspection_lines(inspection, self._width - 1, look)]
        active = self.panes.current.job.replay.name
        subtitle = "" if len(self._order) > 1 else f" {look.glyphs.dot} {active}, Tab: the next pane"
        self.lower.inspector.show(self._order, lines, self._width, f"why: step {step}{subtitle}")

    # Stories

    def story(self) -> None:
        """Show the story of the selected request. If none is selected, ask for one."""
        table = self.lower.requests
        if table.selected is None and len(table.rows) == 1:
            table.selected = table.rows[0].request_id
        if table.selected is None:
            self.prompt.ask("request")
        else:
            self.tell_story(table.selected)

    def tell_story(self, text: str) -> None:
        """Show the story of the request with this id, or with this part of an id."""
        histories = [pane.series.history for pane in self.panes if pane.series is not None]
        self.screen.say(f"reading the steps of {text}")

        def work(deliver: Deliver[list[RequestStory | None]], cancelled: Cancelled) -> None:
            recording = self.model.recording_now()
            request_id = request_id_of(text, recording)
            stories: list[RequestStory | None] = []
            for history in histories:
                if cancelled():
                    return
                stories.append(story_of(recording, history, request_id))
            deliver(stories)

        self._stories.want(work)

    def _show_stories(self, stories: list[RequestStory | None]) -> None:
        self.screen.say()
        shown = [story for story in stories if story is not None and (story.segments or story.arrived)]
        if not shown:
            self.screen.say("no step of that request is known here")
            return
        look = self.screen.look()
        dialog = StoryScreen(shown, self.screen.session.cursor, look, look.css_class)
        self.screen.open_dialog(dialog, self._leave_story)

    # Waits

    def waits(self) -> None:
        """Show who waited under the formula of the active pane."""
        session = self.screen.session
        series, read = self.panes.current.series, session.sources.batch_rows
        if series is None:
            self.screen.say("this pane has no steps yet")
            return
        self.screen.say("looking for who waited")

        def work(deliver: Deliver[Waits | None], _cancelled: Cancelled) -> None:
            history, recording = series.history, self.model.recording_now()
            deliver(waits_of(history if read is None else with_recorded_lives(history, recording, read)))

        self._waits.want(work)

    def _show_waits(self, waits: Waits | None) -> None:
        self.screen.say()
        if waits is None:
            self.screen.say("what each request ran is not known here: S asks the trace, FROM waiting")
            return
        look = self.screen.look()
        dialog = WaitsScreen(waits, self.screen.session.cursor, look, look.css_class)
        self.screen.open_dialog(dialog, self._leave_story)

    # Ranks

    def ranks(self) -> None:
        """Show all ranks of the trace: the recording at once, then each replay as it is computed."""
        compute = self.screen.session.sources.ranks
        if compute is None:
            self.screen.say("this trace has one engine")
            return
        self.screen.say("computing the ranks")

        def work(deliver: Deliver[list[RankRun]], cancelled: Cancelled) -> None:
            runs: list[RankRun] = []
            for run in compute(cancelled):
                runs.append(run)
                deliver(list(runs))

        self._ranks.want(work)

    def _show_ranks(self, runs: list[RankRun]) -> None:
        self.screen.say()
        if len(runs) > 1 and self._ranks_dialog is not None:
            self._ranks_dialog.show(runs)
            return
        session, look = self.screen.session, self.screen.look()
        engine_id = self.model.recording_now().engine.engine_id
        dialog = RanksScreen(
            runs, engine_id, session.cursor, look, look.glyphs.border == "ascii", look.css_class
        )
        self._ranks_dialog = dialog
        self.screen.open_dialog(dialog, self._leave_ranks)

    def _leave_ranks(self, step: int | None) -> None:
        self._ranks_dialog = None
        self._ranks.drop()
        self._leave_story(step)

    def _leave_story(self, step: int | None) -> None:
        if step is not None:
            self.screen.go(step, jump=True)


def request_id_of(text: str, recording: Recording) -> str:
    """The request id that equals a text; else the first id that contains it; else the text itself."""
    ids = recording.requests.get("request_id")
    request_ids = [] if ids is None else ids.tolist()
    if text in request_ids:
        return text
    return next((request_id for request_id in request_ids if text.lower() in str(request_id).lower()), text)
