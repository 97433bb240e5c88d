"""Rows for the requests of a batch, for an engine that has none: it knows requests by id, a frame names them by row."""

from __future__ import annotations

FEWEST_ROWS = 16


class RowTable:
    """Which request holds which row. `ids`: the request of each row, "" if it is free; `vacated`: rows that became free
    and that no frame has named yet.
    """

    def __init__(self) -> None:
        self.rows: dict[str, int] = {}
        self.ids: list[str] = []
        self.by_row: tuple[str, ...] = ()
        self.free: list[int] = []
        self.vacated: list[int] = []

    def take(self, request_id: str) -> int:
        """Give a request a row."""
        if not self.free:
            size = len(self.ids)
            self.ids += [""] * max(FEWEST_ROWS, size)
            self.free = list(range(len(self.ids) - 1, size - 1, -1))
        row = self.rows[request_id] = self.free.pop()
        self.ids[row] = request_id
        self.by_row = ()
        return row

    def give_back(self, request_id: str) -> None:
        """Free a request's row, if it has one."""
        row = self.rows.pop(request_id, None)
        if row is not None:
            self.ids[row] = ""
            self.by_row = ()
            self.free.append(row)
            self.vacated.append(row)

    def take_vacated(self) -> list[int]:
        """The rows that became free since the last call of this method."""
        vacated, self.vacated = self.vacated, []
        return vacated

    def requests(self) -> tuple[str, ...]:
        """The request of each row, as it is now."""
        self.by_row = self.by_row or tuple(self.ids)
        return self.by_row
