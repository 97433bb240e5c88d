"""The area below the charts: the step's requests, the rows of a query, or the inspector."""

from __future__ import annotations

from textual.widgets import ContentSwitcher

from fdtrace.tui.inspector.panel import InspectorPanel
from fdtrace.tui.tables.query_rows import AnswerTable
from fdtrace.tui.tables.requests import RequestTable
from fdtrace.tui.tables.row_view import RowView

REQUESTS, ROWS, INSPECTOR = "requests", "answers", "inspector"


class LowerArea(ContentSwitcher):
    """Shows one of three views of rows. The inspector covers the other two; closing it shows the view below again."""

    DEFAULT_CSS = """
    LowerArea { height: 1fr; min-height: 5; }
    LowerArea.-inspecting { height: 3fr; min-height: 6; }
    """

    def __init__(self, css_class: str = "") -> None:
        """`css_class`: the class of widgets in plain ASCII; empty on other terminals."""
        self.requests = RequestTable(id=REQUESTS)
        self.rows = AnswerTable(id=ROWS)
        self.inspector = InspectorPanel(id=INSPECTOR)
        for widget in (self.requests, self.rows, self.inspector):
            widget.set_class(bool(css_class), css_class or "-ascii")
        super().__init__(self.requests, self.rows, self.inspector, id="lower", initial=REQUESTS)
        self._under = REQUESTS

    @property
    def shown(self) -> RowView:
        """The view that is shown."""
        return {REQUESTS: self.requests, ROWS: self.rows}.get(self.current or "", self.inspector)

    @property
    def inspecting(self) -> bool:
        """Whether the inspector is shown."""
        return self.current == INSPECTOR

    def inspect(self) -> None:
        """Show the inspector over the current view."""
        if not self.inspecting:
            self._under = self.current or REQUESTS
        self._show(INSPECTOR)

    def leave_inspector(self) -> None:
        """Show the view that the inspector covered."""
        self._show(self._under)

    def show_requests(self) -> None:
        """Show the requests of the step."""
        self._show(REQUESTS)

    def show_rows(self) -> None:
        """Show the rows of a query."""
        self._show(ROWS)

    def _show(self, name: str) -> None:
        self.current = name
        self.set_class(self.inspecting, "-inspecting")
