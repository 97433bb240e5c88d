"""The messages between a driver and the process that drives it: JSON objects, one a line.

A driver's script imports it from its own directory, before that directory is removed from the path.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any, Protocol, TextIO

Message = dict[str, Any]  # Python 3.9: no other use of the new spelling at run time


class CannotGoOn(Exception):
    """A driver cannot answer. The error and the place (`where`) are reported to the process that drives it."""

    def __init__(self, where: str, error: BaseException) -> None:
        is_plain = where == "settings"  # the message is complete by itself
        super().__init__(str(error) if is_plain else f"{type(error).__name__}: {error}")
        self.where = where


class ServedEngine(Protocol):
    """An engine's scheduler with a played worker."""

    def answer(self, message: Message) -> Message:
        """Answer a message that its driver's script documents: a scheduling call and its forward, or less."""

    def close(self) -> None:
        """Release what it holds outside its process."""


def run(open_engine: Callable[[Message], ServedEngine], version: Callable[[], str]) -> None:
    """Serve until stdin ends. If argv names a checkout, it comes first in the path.

    stdin and stdout carry only the messages, whatever the engine reads or prints.
    """
    commands = os.fdopen(os.dup(0), encoding="utf-8")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    with open(os.devnull, "rb") as empty:
        os.dup2(empty.fileno(), 0)
    os.dup2(2, 1)
    # It replaces the drivers' own directory: the engine must not import its modules.
    sys.path[:1] = sys.argv[1:2]
    _serve(open_engine, version, commands, answers)
    answers.close()
    os._exit(0)  # a normal exit would wait for the engine's thread pools


def _serve(
    open_engine: Callable[[Message], ServedEngine],
    version: Callable[[], str],
    commands: TextIO,
    answers: TextIO,
) -> None:
    engine = None

    def ask(question: Message) -> Message:
        """The answer of the process that drives this one, in the middle of an answer to it."""
        answers.write(json.dumps({"question": question}) + "\n")
        answers.flush()
        answer: Message = json.loads(commands.readline())
        return answer

    try:
        for line in commands:
            message = json.loads(line)
            try:
                if "open" in message:
                    engine = open_engine(message["open"])
                    if hasattr(engine, "ask_by"):
                        engine.ask_by(ask)
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
