"""A script of the tests that runs in vLLM's Python and answers one question a line: vLLM is imported once for all."""

from __future__ import annotations

import json
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import fdtrace.drivers

LAST = 2000
"""Characters of its stderr that are shown if it dies."""


class VllmProcess:
    """`program`, started by `python`. It ends with its stdin, so with this process."""

    def __init__(self, python: str, program: Path, *arguments: object) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the process
        self._process = subprocess.Popen(
            [python, str(program), *map(str, arguments), "-"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """Its answer. AssertionError, with what it printed, if it died."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(question) + "\n")
        process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            process.wait()
            self._errors.seek(0)
            raise AssertionError(self._errors.read().decode(errors="replace")[-LAST:])
        answer: dict[str, Any] = json.loads(line)
        return answer


@cache
def engine_process(python: str) -> VllmProcess:
    """The process in which a real `EngineCore` is stepped, one for all tests of a worker."""
    drivers = Path(fdtrace.drivers.__file__).parent
    return VllmProcess(python, Path(__file__).with_name("vllm_engine.py"), drivers)
