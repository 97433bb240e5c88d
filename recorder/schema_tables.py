"""A table of a trace and its columns, as values."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Column:
    """One column: its DuckDB type, and its meaning with its unit."""

    name: str
    type: str
    comment: str


@dataclass(frozen=True)
class Table:
    """One table, sorted by `order_by`. Traces of schema versions before `since` do not have it."""

    name: str
    comment: str
    columns: tuple[Column, ...]
    order_by: tuple[str, ...]
    since: int = 1

    @property
    def names(self) -> tuple[str, ...]:
        """The columns' names, in order."""
        return tuple(column.name for column in self.columns)


def table(name: str, comment: str, order_by: str, *columns: tuple[str, str, str], since: int = 1) -> Table:
    """A table whose columns are given as name, type and comment. `order_by`: names, separated by spaces."""
    return Table(name, comment, tuple(Column(*column) for column in columns), tuple(order_by.split()), since)
