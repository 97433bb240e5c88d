"""A formula from a Python file is its user's own code: it may fail; it may not end fdtrace, nor print in its place."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fdtrace.cli import main

Captured = pytest.CaptureFixture[str]
BUDGET = "    def budget(self, v):\n        "
FINE = f"class F:\n{BUDGET}return v.max_num_batched_tokens\n"

ENDING = {
    "exit_at_import": f"import sys\nsys.exit(0)\n{FINE}",
    "exit_in_budget": f"import sys\nclass F:\n{BUDGET}sys.exit(0)\n",
    "exit_when_made": f"import sys\n{FINE}    def __init__(self):\n        sys.exit(0)\n",
    "exit_in_charge": f"import sys\n{FINE}    def charge(self, v):\n        sys.exit(0)\n",
    "base_exception_at_import": f"raise BaseException('no')\n{FINE}",
    "base_exception_in_budget": f"class F:\n{BUDGET}raise GeneratorExit\n",
    "own_base_exception": f"class E(BaseException):\n    pass\nclass F:\n{BUDGET}raise E\n",
    "null_byte": "\0",
    "recursion": f"class F:\n{BUDGET}return self.budget(v)\n",
}  # fmt: skip


@pytest.mark.parametrize("name", ENDING)
@pytest.mark.parametrize(
    "command", [("check",), ("replay", "--report"), ("check", "--as-recorded")], ids=" ".join
)
def test_what_would_end_fdtrace_is_an_error(
    trace: Path, tmp_path: Path, name: str, command: tuple[str, ...], capsys: Captured
) -> None:
    file = tmp_path / "f.py"
    file.write_text(ENDING[name])
    assert main([command[0], str(trace), *command[1:], "-f", f"{file}:F"]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("fdtrace: ")
    assert "Traceback" not in said.err
    assert "fault in fdtrace" not in said.err
    assert not said.out


def test_what_it_prints_is_not_our_output(trace: Path, tmp_path: Path) -> None:
    file = tmp_path / "f.py"
    file.write_text(
        "import sys\nprint('at import')\nclass F:\n    def __init__(self):\n        print('when made')\n"
        "    def budget(self, v):\n        sys.stdout.write('in budget\\n')\n        return v.max_num_batched_tokens\n"
    )
    command = [sys.executable, "-m", "fdtrace", "check", str(trace), "-f", f"{file}:F"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    lines = ended.stdout.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(("ok   F:", "FAIL F:"))
    assert "at import\nwhen made\nin budget\n" in ended.stderr


@pytest.mark.parametrize(
    "text",
    [
        f"{'x' * 100_000}: num_running",
        f"{'x' * 200}: num_running",
        f"mine: {'1 + ' * 100_000}1",
        f"mine: {'(' * 300}1{')' * 300}",
        f"mine: {'-' * 900}1",
        f"mine: {'not ' * 200}1",
        f"mine: {'1 if 1 else ' * 60}1",
        "x" * 100_000,
        f"{'y' * 100_000}.py:F",
    ],
    ids=lambda text: f"{text[:12]}… ({len(text)})",
)
def test_names_and_texts_have_a_limit(trace: Path, text: str, capsys: Captured) -> None:
    assert main(["check", str(trace), "-f", text]) == 2
    said = capsys.readouterr().err
    assert said.startswith("fdtrace: ")
    assert "why: " in said or "next: " in said
    assert len(said) < 5000


def test_a_class_may_not_have_a_name_without_end(trace: Path, tmp_path: Path, capsys: Captured) -> None:
    file = tmp_path / "f.py"
    name = "F" * 300
    file.write_text(FINE.replace("class F", f"class {name}"))
    assert main(["check", str(trace), "-f", f"{file}:{name}"]) == 2
    assert "too long" in capsys.readouterr().err
