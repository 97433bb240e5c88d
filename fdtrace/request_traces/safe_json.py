"""Reads JSON of strangers piece by piece: lines, or the elements of one long list. Only one piece is in memory."""

from __future__ import annotations

import codecs
import gzip
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

from fdtrace.recorder.errors import UsageError
from fdtrace.replayer.workload.case_fields import as_json

LONGEST_PIECE = 64 << 20
"""Bytes of a line, characters of an element. A conversation of a million tokens has some 4 MB."""
MOST_DIGITS = 40
CHUNK = 1 << 20
GZIP = b"\x1f\x8b"
OTHER_ENCODINGS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
HINT = "one JSON object in each line, as fdtrace's docs/workloads.md shows for each format"


class _NotReadable(ValueError):
    """A value that JSON does not have, or that nobody needs."""


def _whole(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise _NotReadable(f"a number of {len(digits)} digits")
    return int(digits)


def _constant(name: str) -> Any:
    raise _NotReadable(f"{name} is no number of JSON")


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    by_name = dict(pairs)
    if len(by_name) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _NotReadable(f"the key {as_json(twice)} is there twice")
    return by_name


DECODER = json.JSONDecoder(object_pairs_hook=_members, parse_int=_whole, parse_constant=_constant)


def open_trace_file(path: Path) -> IO[bytes]:
    """The bytes of a file, unpacked if it is gzip. UsageError if it cannot be read, or begins as UTF-16 does."""
    try:
        with open(path, "rb") as file:
            head = file.read(4)
        opened = cast("IO[bytes]", (gzip.open if head.startswith(GZIP) else open)(path, "rb"))
    except OSError as error:
        raise UsageError(f"{path} cannot be read", why=error.strerror or str(error)) from None
    if head.startswith(OTHER_ENCODINGS):
        opened.close()
        raise UsageError(
            f"{path} is not UTF-8", why="it begins as UTF-16 does", hint=f"iconv -f UTF-16 -t UTF-8 {path}"
        )
    return opened


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a file with their numbers, from 1. Empty ones are left out.

    Raises:
        UsageError: a line is too long or not UTF-8, or the file cannot be read.
    """
    with open_trace_file(path) as file:
        number = 0
        while True:
            try:
                line = file.readline(LONGEST_PIECE + 1)
            except (OSError, EOFError) as error:
                raise UsageError(f"{path} cannot be read after line {number}", why=str(error)) from None
            if not line:
                return
            number += 1
            if len(line) > LONGEST_PIECE:
                raise UsageError(
                    f"{path}, line {number} has more than {LONGEST_PIECE >> 20} MiB",
                    why="a line holds one request",
                    hint=HINT,
                )
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise UsageError(
                    f"{path}, line {number} is not UTF-8",
                    why=f"{error.reason} at byte {error.start} of the line",
                    hint=f"write the file as UTF-8: iconv -t UTF-8 {path}",
                ) from None
            if text.strip():
                yield number, text


def json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a file of JSON lines, each with its place. UsageError as `text_lines`, or if a line is none."""
    for number, text in text_lines(path):
        where = f"{path}, line {number}"
        try:
            value = DECODER.decode(text.strip())
        except (ValueError, RecursionError) as error:
            raise _refusal(where, error) from None
        if not isinstance(value, dict):
            raise UsageError(f"{where} is {as_json(value)}", why="a line holds an object", hint=HINT)
        yield where, value


def _refusal(where: str, error: Exception) -> UsageError:
    if isinstance(error, RecursionError):
        return UsageError(f"{where} is no request", why="its lists or objects are nested too deep", hint=HINT)
    why = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
    return UsageError(f"{where} is no JSON", why=why, hint=HINT)


def json_elements(path: Path, begin: str, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of one long JSON list, each with its place.

    Args:
        path: the file.
        begin: a regular expression for all before the first element, as `\\[`.
        name: how an element's place is written, as `data`.

    Raises:
        UsageError: the file cannot be read, or an element is no object.
    """
    with open_trace_file(path) as file:
        text, place, number = _Text(path, io.TextIOWrapper(file, encoding="utf-8-sig")), 0, 0
        opened = re.compile(begin).match(text.more())
        if opened is None:
            raise UsageError(f"{path} is no list of requests", hint=HINT)
        place = opened.end()
        while True:
            where = f"{path}, {name}[{number}]"
            place = text.skip(place, ", \t\r\n" if number else " \t\r\n")
            if text.at(place) == "]":
                return
            if text.at(place) != "{":
                found = text.at(place)
                why = f"it begins with {found!a}" if found else "the file ends before its list does"
                raise UsageError(f"{where} is no object", why=why, hint="a list of objects")
            value, place = _element(text, place, where)
            yield where, value
            place = text.forget(place)
            number += 1


def _element(text: _Text, place: int, where: str) -> tuple[dict[str, Any], int]:
    while True:
        try:
            value, end = DECODER.raw_decode(text.held, place)
        except json.JSONDecodeError as error:
            if len(text.held) - place > LONGEST_PIECE or not text.grow():
                raise _refusal(where, error) from None
        except (ValueError, RecursionError) as error:
            raise _refusal(where, error) from None
        else:
            return value, end


class _Text:
    """The part of a text that is held, and the rest of it, which is read when it is needed."""

    def __init__(self, path: Path, reader: IO[str]) -> None:
        self.path, self._reader, self.held = path, reader, ""

    def more(self) -> str:
        """Read more, and give all that is held."""
        self.grow()
        return self.held

    def grow(self) -> bool:
        """Read as much again, at least `CHUNK`; False: there is no more."""
        try:
            new = self._reader.read(max(CHUNK, len(self.held)))
        except UnicodeDecodeError as error:
            raise UsageError(f"{self.path} is not UTF-8", why=error.reason) from None
        except (OSError, EOFError) as error:
            raise UsageError(f"{self.path} cannot be read", why=str(error)) from None
        self.held += new
        return bool(new)

    def at(self, place: int) -> str:
        """The character at a place; empty: the text has ended."""
        while place >= len(self.held) and self.grow():
            pass
        return self.held[place : place + 1]

    def skip(self, place: int, characters: str) -> int:
        """The first place from `place` on with another character."""
        while (found := self.at(place)) and found in characters:
            place += 1
        return place

    def forget(self, place: int) -> int:
        """Drop what lies before a place, once it is much. Returns where the place is then."""
        if place < CHUNK // 2:
            return place
        self.held = self.held[place:]
        return 0
