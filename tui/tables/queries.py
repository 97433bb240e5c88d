"""SQL in the debugger: a query's rows in place of the requests; those with a `step` can be stepped through."""

from __future__ import annotations

from fdtrace.recorder.errors import UsageError
from fdtrace.replayer.replay.run import Cancelled
from fdtrace.tui.background import Deliver
from fdtrace.tui.screen import Asks, ReplayScreen
from fdtrace.tui.sources import Answer
from fdtrace.tui.tables.lower_area import LowerArea


class Queries:
    """Asks the trace off the screen's thread, and leads through the rows."""

    def __init__(self, screen: ReplayScreen, lower: LowerArea, prompt: Asks) -> None:
        self.screen, self.lower, self.prompt = screen, lower, prompt
        self._answers = screen.background("sql", self._answered, self._refused)
        self._query = ""

    def ask(self) -> None:
        """Ask for a query."""
        self.prompt.ask("sql")

    def query(self, text: str) -> None:
        """Run a query. UsageError where there is nothing to ask."""
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
        """The query makes no sense: ask again with it, and with what is wrong."""
        self.prompt.ask("sql", self._query)
        self.prompt.show_trouble(error)

    def moved_to(self, step: int | None) -> None:
        """Another row was selected: to its step."""
        if step is not None and step != self.screen.session.cursor:
            self.screen.go(step)

    def close(self) -> bool:
        """Show the requests again; whether rows were shown."""
        if self.lower.shown is not self.lower.rows:
            return False
        self.lower.show_requests()
        self.screen.show_all()
        return True
