"""README and docs: each command in them is one that fdtrace takes, and those that need no GPU and no server run."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fdtrace.cli import COMMANDS, build_parser, main
from fdtrace.flights.flight_options import flight_plan
from tests.made_once import made_once

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
ENGINE = ROOT / "tests" / "recorder" / "played" / "engine.py"

_INLINE = re.compile(r"`([^`\n]+)`")
_PLACEHOLDERS = {"PID": "1", "N": "1", "S": "1", "$!": "1", "…": "", "CMD…": "true", "CMD": "true"}


def commands_of(page: Path) -> list[str]:
    """The whole command lines of fdtrace in a page: of its blocks, a line each, and between backquotes."""
    found = []
    lines = page.read_text().replace("\\\n", " ").split("\n")
    for line in lines:
        if line.startswith("    "):
            text = re.sub(
                r"\s{2,}[a-z(].*$", "", line.strip().removeprefix("$ ")
            )  # what stands beside it explains it
            found += [text] if text.startswith("fdtrace ") else []
        else:
            found += [text for text in _INLINE.findall(line) if text.startswith("fdtrace ")]
    return found


def is_whole(command: str) -> bool:
    """Whether it is to be typed as it is: it may be a list of commands, or a name with its argument left out."""
    return " · " not in command and "[" not in command and "`" not in command and len(command.split()) > 1


CASES = [(page.name, command) for page in PAGES for command in commands_of(page) if is_whole(command)]


@pytest.mark.parametrize(("page", "command"), CASES)
def test_a_documented_command_is_one_that_fdtrace_takes(page: str, command: str) -> None:
    words = shlex.split(command, comments=True)[1:]
    words = [_PLACEHOLDERS.get(word, word) for word in words]
    words = [word for word in words if word]
    assert words[0] in COMMANDS, f"{page}: {command}"
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            build_parser(words[0]).parse_args(words)
    except SystemExit:
        # A mention may leave out what the command needs (`fdtrace record`); it may not name what there is not.
        assert "the following arguments are required" in said.getvalue(), (
            f"{page}: {command}\n{said.getvalue()}"
        )


def test_the_services_in_the_docs_give_options_that_fdtrace_takes() -> None:
    """Of the systemd unit and of the Kubernetes manifest: their commands stand within a shell's."""
    lines = re.findall(r"exec (fdtrace attach .*?)'?\n", (ROOT / "docs" / "flights.md").read_text())
    assert len(lines) == 2
    for line in lines:
        words = shlex.split(re.sub(r"\$\([^)]*\)", "1", line))[1:]
        args = build_parser("attach").parse_args(words)
        assert flight_plan(args) is not None


def test_there_are_commands_to_try() -> None:
    assert len(CASES) > 40
    assert {page for page, _ in CASES} >= {
        "README.md",
        "debugger.md",
        "fastdeploy.md",
        "vllm.md",
        "security.md",
    }


@pytest.fixture(scope="module")
def recorded(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with `t.duckdb`, recorded as README records the sandbox, of an engine that needs no Paddle."""

    def record(path: Path) -> None:
        command = [sys.executable, "-m", "fdtrace", "record", "-o", str(path), "--"]
        subprocess.run(
            [*command, sys.executable, str(ENGINE), "--steps", "300"],
            cwd=ROOT, check=True, capture_output=True,
        )  # fmt: skip

    directory = tmp_path_factory.mktemp("session")
    shutil.copy(made_once(shared / "docs.duckdb", record), directory / "t.duckdb")
    return directory


RUN = ("sql", "replay", "check", "info", "formulas", "status")
"""Commands that need nothing but a trace."""


def is_run(command: str) -> bool:
    words = shlex.split(command, comments=True)
    of_our_trace = "t.duckdb" in words or "T" in words or words[1] in ("formulas", "status")
    needs_more = {"--scheduler", "--step", "--routing"} & set(words) or "FORMULA" in command or "…" in command
    # On a terminal `replay` opens the screen; its own tests do that.
    return words[1] in RUN and of_our_trace and not needs_more


EXAMPLES = sorted({command for _, command in CASES if is_run(command)})


@pytest.mark.parametrize("command", EXAMPLES)
def test_a_documented_command_runs(command: str, recorded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(recorded)
    words = [{"T": "t.duckdb"}.get(word, word) for word in shlex.split(command, comments=True)[1:]]
    said, told = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(told):
        code = main(words)
    assert code in (0, 1), told.getvalue()
    assert said.getvalue(), command


def test_the_sessions_examples_are_among_them() -> None:
    assert {words.split()[1] for words in EXAMPLES} >= {"sql", "replay", "check"}
