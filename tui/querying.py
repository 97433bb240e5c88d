"""SQL in the debugger: a query's rows in place of the requests; those with a `step` can be stepped through."""

from __future__ import annotations

from fdtrace.recorder.errors import UsageError
from fdtrace.tui.answers import AnswerTable
from fdtrace.tui.background import Cancelled, Deliver
from fdtrace.tui.looking import Looking
from fdtrace.tui.sources import Answer


class Querying(Looking):
    """Asks the trace in a worker, and leads through the rows."""

    def prepare(self) -> None:
        super().prepare()
        self._answers = self.background("sql", self._answered, self._refused)
        self._query = ""

    def query_trace(self, text: str) -> None:
        """Run a query. UsageError where there is nothing to ask."""
        source = self.sources.sql
        if source is None:
            raise UsageError("there is no trace to ask here", hint="open one with `fdtrace replay`")
        self._query = text
        self.show_status("asking the trace")

        def work(deliver: Deliver[Answer], _cancelled: Cancelled) -> None:
            deliver(source(text))

        self._answers.want(work)

    def _answered(self, answer: Answer) -> None:
        self.answering = True
        if self.inspecting:
            self.action_inspect()
        self.show_parts()
        table = self.query_one(AnswerTable)
        look = self.look()
        table.show(answer, look.palette)
        self.call_after_refresh(table.entitle, self._query)
        self.show_status()
        if table.step is not None:
            self.go(table.step, jump=True)

    def _refused(self, error: str) -> None:
        """The query makes no sense: ask again with it, and with what is wrong."""
        self.ask("sql", self._query)
        self._trouble(error)

    def on_answer_table_moved(self, message: AnswerTable.Moved) -> None:
        """Another row: to its step."""
        if message.step is not None and message.step != self.board.cursor:
            self.go(message.step)

    def action_scroll(self, rows: int) -> None:
        """The next row, or the one before."""
        if self.answering and not self.inspecting:
            self.query_one(AnswerTable).move(rows * (self.take_count() or 1))
        else:
            super().action_scroll(rows)

    def action_scroll_page(self, pages: int) -> None:
        """A page of rows."""
        if self.answering and not self.inspecting:
            self.query_one(AnswerTable).page(pages)
        else:
            super().action_scroll_page(pages)

    def action_escape(self) -> None:
        """Close what is open."""
        if self.answering and not self.inspecting:
            self.answering = False
            self.show_parts()
            self.show_step()
        else:
            super().action_escape()
