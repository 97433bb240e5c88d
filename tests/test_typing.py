"""What a type checker makes of the public names, in somebody's project."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import fdtrace

API = Path(__file__).parent / "typing" / "api.py"
WRONG = """
import fdtrace

runs = fdtrace.replay(7, ["original"])
fdtrace.open("t.duckdb").recording().steps.no_such
fdtrace.replay("t.duckdb", clock="moon")
fdtrace.no_such_name
"""


def mypy(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Strict, by the options in pyproject.toml: so it takes from its cache what `make check` has looked at."""
    command = [sys.executable, "-m", "mypy", "--no-error-summary", *arguments]
    return subprocess.run(command, cwd=API.parents[2], capture_output=True, text=True, check=False)


@pytest.mark.timeout(1800)
@pytest.mark.slow
def test_the_public_names_have_types(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.py"
    wrong.write_text(WRONG)
    found = mypy(str(API), str(wrong))
    # Errors inside fdtrace depend on the stubs of the NumPy that is installed; `make check` holds these.
    errors = [line for line in found.stdout.splitlines() if not line.startswith("fdtrace")]
    # The path may be that of an earlier run: mypy's cache knows a module by its name and its text.
    assert [line for line in errors if "wrong.py:" not in line] == [], found.stdout + found.stderr
    assert {line.split(":")[1] for line in errors} == {"4", "5", "6", "7"}


def test_each_public_name_is_there_and_in_the_typing_test() -> None:
    text = API.read_text()
    for name in fdtrace.__all__:
        assert getattr(fdtrace, name) is not None
        if name != "UsageError":
            assert f"fdtrace.{name}" in text, name
    assert set(fdtrace.__all__) <= set(dir(fdtrace))
    assert (Path(fdtrace.__file__).parent / "py.typed").is_file()


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        getattr(fdtrace, "nothing")  # noqa: B009


def test_importing_it_loads_neither_numpy_nor_duckdb() -> None:
    dear = ("numpy", "duckdb", "textual", "rich", "pandas")
    code = f"import sys, fdtrace; print([name for name in {dear} if name in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
