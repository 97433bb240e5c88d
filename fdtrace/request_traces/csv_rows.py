"""Reads the rows of CSV files of strangers, one at a time."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from fdtrace.recorder.errors import UsageError
from fdtrace.request_traces.safe_json import text_lines


def csv_rows(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """The rows of a CSV file by the names of its header, each with its place.

    Raises:
        UsageError: the file cannot be read, or a row has another number of fields than the header.
    """
    lines = _Lines(path)
    reader = csv.reader(lines, strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        for row in reader:
            where = f"{path}, line {lines.number}"
            if len(row) != len(header):
                raise UsageError(
                    f"{where} has {len(row)} fields",
                    why=f"the header has {len(header)}: {', '.join(header)}",
                    hint="correct it, or take this line out",
                )
            yield where, dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise UsageError(
            f"{path}, line {lines.number} is no CSV", why=str(error), hint="correct it"
        ) from None


class _Lines:
    """The lines of a file. `number` is that of the last one read."""

    def __init__(self, path: Path) -> None:
        self._lines, self.number = text_lines(path), 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        self.number, text = next(self._lines)
        return text
