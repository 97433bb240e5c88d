"""The conversation of a driver with whoever drives it: a JSON object a line each way.

Imported by a driver's script from beside it, before the script's directory leaves the path.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any, Protocol, TextIO

Message = dict[str, Any]  # Python 3.9: no other use of the new spelling at run time


class CannotGoOn(Exception):
    """Reported to whoever drives, with where it happened."""

    def __init__(self, where: str, error: BaseException) -> None:
        plain = where == "settings"  # told in words of its own
        super().__init__(str(error) if plain else f"{type(error).__name__}: {error}")
        self.where = where


class ServedEngine(Protocol):
    """An engine's scheduler with a played worker."""

    def answer(self, message: Message) -> Message:
        """To a message that its driver's script documents: a scheduling call and the forward that follows, or less."""

    def close(self) -> None:
        """Give back what it holds outside its process."""


def run(open_engine: Callable[[Message], ServedEngine], version: Callable[[], str]) -> None:
    """Serve to the end of stdin, with the checkout that argv names (if any) first in the path.

    Keeps stdin and stdout for the conversation, whatever the engine reads or prints.
    """
    commands = os.fdopen(os.dup(0), encoding="utf-8")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    # In place of the drivers' own directory, whose names are not for the engine.
    sys.path[:1] = sys.argv[1:2]
    _serve(open_engine, version, commands, answers)
    answers.close()
    os._exit(0)  # the engine's thread pools would be waited for


def _serve(
    open_engine: Callable[[Message], ServedEngine],
    version: Callable[[], str],
    commands: TextIO,
    answers: TextIO,
) -> None:
    engine = None
    try:
        for line in commands:
            message = json.loads(line)
            try:
                if "open" in message:
                    engine = open_engine(message["open"])
                    answer: Message = {"opened": version()}
                else:
                    assert engine is not None, "nothing is open"
                    answer = engine.answer(message)
            except CannotGoOn as error:
                answer = {"failed": str(error), "where": error.where}
            except Exception as error:
                answer = {"failed": f"{type(error).__name__}: {error}", "where": "step"}
            answers.write(json.dumps(answer) + "\n")
            answers.flush()
    finally:
        if engine is not None:
            engine.close()
