"""SQL in the debugger: a query's rows take the place of the requests. If they have a `step`, each row leads to it."""

from __future__ import annotations

from fdtrace.recorder.errors import UsageError
from fdtrace.replayer.replay.workload_replay import Cancelled
from fdtrace.tui.background import Deliver
from fdtrace.tui.screen_protocol import Prompter, ReplayScreen
from fdtrace.tui.sources import Answer
from fdtrace.tui.tables.lower_area import LowerArea


class Queries:
    """Runs queries off the screen's thread, and moves the cursor to the steps of their rows."""

    def __init__(self, screen: ReplayScreen, lower: LowerArea, prompt: Prompter) -> None:
        self.screen, self.lower, self.prompt = screen, lower, prompt
        self._answers = screen.background("sql", self._answered, self._refused)
        self._query = ""

    def ask(self) -> None:
        """Ask for a query."""
        self.prompt.ask("sql")

    def query(self, text: str) -> None:
        """Run a query. UsageError if there is no trace to query."""
        source = self.screen.session.sources.sql
        if source is None:
            raise UsageError("there is no trace to ask here", hint="open one with `fdtrace replay`")
        self._query = text
        self.screen.say("asking the trace")

        def work(deliver: Deliver[Answer], _cancelled: Cancelled) -> None:
            deliver(source(text))

        self._answers.want(work)

    def _answered(self, answer: Answer) -> None:
        table = self.lower.rows
        self.lower.show_rows()
        table.show(answer, self.screen.look().palette)
        self.screen.call_after_refresh(table.entitle_query, self._query)
        self.screen.show_all()
        if table.step is not None:
            self.screen.go(table.step, jump=True)

    def _refused(self, error: str) -> None:
        """The query failed: show the error, and ask again with the same text."""
        self.prompt.ask("sql", self._query)
        self.prompt.show_trouble(error)

    def moved_to(self, step: int | None) -> None:
        """Another row was selected: go to its step."""
        if step is not None and step != self.screen.session.cursor:
            self.screen.go(step)

    def close(self) -> bool:
        """Show the requests again. Returns whether rows of a query were shown."""
        if self.lower.shown is not self.lower.rows:
            return False
        self.lower.show_requests()
        self.screen.show_all()
        return True
