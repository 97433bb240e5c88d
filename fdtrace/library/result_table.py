"""A table of results for programs and notebooks: columns and rows. A value that is not known is None or NaN."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fdtrace.recorder.errors import UsageError
from fdtrace.recorder.trace.column_values import MISSING

if TYPE_CHECKING:
    import pandas as pd

SHOWN = 20
"""Rows of a table that a notebook shows."""


class ResultTable:
    """Columns of equal length. A value that is not known is NaN in a column of numbers and None in a row, never -1.

    `table["num_tokens"]` is a column, `table.rows()` the rows as dictionaries, `table.df()` a pandas DataFrame,
    `len(table)` the number of rows.
    """

    def __init__(
        self,
        columns: Mapping[str, Any],
        *,
        title: str = "",
        may_be_negative: Sequence[str] = (),
        times: Sequence[str] = (),
    ) -> None:
        """`columns`: arrays in which -1 means NULL, except in those that `may_be_negative`. `times` are in ns."""
        self.title = title
        self._columns = {
            name: _with_nulls(np.asarray(values), keep=name in may_be_negative, is_time=name in times)
            for name, values in columns.items()
        }

    @classmethod
    def of_rows(cls, rows: Sequence[Mapping[str, Any]], *, title: str = "") -> ResultTable:
        """A table of dictionaries with the same keys; None is NULL."""
        names = list(rows[0]) if rows else []
        columns = {name: _column([row[name] for row in rows]) for name in names}
        return cls(columns, title=title, may_be_negative=names)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns' names."""
        return tuple(self._columns)

    def __getitem__(self, name: str) -> NDArray[Any]:
        """A column: int64, or float64 with NaN where a value is not known, or objects with None.

        Raises:
            UsageError: there is no such column.
        """
        try:
            return self._columns[name]
        except KeyError:
            raise UsageError(f"there is no column {name!r}", hint=", ".join(self._columns)) from None

    def __contains__(self, name: object) -> bool:
        return name in self._columns

    def __len__(self) -> int:
        return len(next(iter(self._columns.values()), ()))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows())

    def rows(self) -> list[dict[str, Any]]:
        """The rows as dictionaries of plain Python values; None: not known."""
        values = [[_python(value) for value in column] for column in self._columns.values()]
        return [dict(zip(self._columns, row, strict=True)) for row in zip(*values, strict=True)]

    def df(self) -> pd.DataFrame:
        """The table as a pandas DataFrame.

        Raises:
            UsageError: pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError:
            raise UsageError("pandas is not installed", hint="pip install pandas, or .rows()") from None
        return pd.DataFrame(dict(self._columns))

    def __repr__(self) -> str:
        names = ", ".join(self._columns)
        return f"<ResultTable{f' {self.title}' if self.title else ''}: {len(self)} rows of {names}>"

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{html.escape(name)}</th>" for name in self._columns)
        body = "".join(
            "<tr>" + "".join(f"<td>{'' if value is None else html.escape(_cell(value))}</td>" for value in row.values())
            + "</tr>"
            for row in self.rows()[:SHOWN]
        )  # fmt: skip
        more = f"<p>{len(self) - SHOWN} more rows</p>" if len(self) > SHOWN else ""
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}"


def _python(value: Any) -> Any:
    """A column's value as a plain Python value; None: not known. A time stays numpy's, which has nanoseconds."""
    if isinstance(value, np.datetime64):
        return None if np.isnat(value) else value
    plain = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(plain, float) and math.isnan(plain) else plain


def _cell(value: Any) -> str:
    from fdtrace.recorder.printable import printable

    return f"{value:.4g}" if isinstance(value, float) and not value.is_integer() else printable(value)


def _column(values: list[Any]) -> NDArray[Any]:
    not_none = [value for value in values if value is not None]
    if not_none and all(type(value) in (int, float) for value in not_none):
        whole = all(isinstance(value, int) for value in values)
        return np.array(
            [np.nan if value is None else value for value in values], np.int64 if whole else np.float64
        )
    if not_none and len(not_none) == len(values) and all(isinstance(value, bool) for value in not_none):
        return np.array(values, bool)
    column = np.empty(len(values), object)
    column[:] = values
    return column


def _with_nulls(values: NDArray[Any], *, keep: bool, is_time: bool) -> NDArray[Any]:
    """A column with NaN, NaT or None in place of the value that means NULL."""
    if is_time:
        moments = values.astype("datetime64[ns]")
        moments[values == MISSING] = np.datetime64("NaT", "ns")
        return moments
    if keep or values.dtype.kind not in "iufO":
        return values
    if values.dtype == object:
        objects = np.empty(len(values), object)
        objects[:] = [None if value == "" else value for value in values.tolist()]
        return objects
    missing = values == MISSING
    if not missing.any():
        return values
    return np.where(missing, np.nan, values)
