"""docs/cookbook.md: its commands run in their order, and print the lines that the page shows under each."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import shutil
from pathlib import Path

import pytest

from fdtrace.cli import main

DOCS = Path(__file__).parents[1] / "docs"
PAGE = DOCS / "cookbook.md"


def recipes() -> list[tuple[str, str]]:
    """The heading and the block of each recipe with commands."""
    parts = re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)[1:]
    found = []
    for part in parts:
        blocks = re.findall(r"^```\n(.*?)^```", part, re.MULTILINE | re.DOTALL)
        lines = [line for block in blocks for line in block.splitlines()]
        if any(line.startswith("$ fdtrace") for line in lines):
            found.append((part.splitlines()[0], "\n".join(lines)))
    return found


RECIPES = recipes()


def plain(text: str) -> str:
    """The text without its line ends and frames: a table may be broken anywhere."""
    return re.sub(r"[\s|─│+-]+", " ", text)


@pytest.mark.parametrize(("name", "lines"), RECIPES, ids=[name for name, _ in RECIPES])
def test_a_recipe_prints_what_the_page_shows(
    name: str, lines: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for workload in (DOCS / "workloads").glob("*.json*"):
        shutil.copy(workload, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    printed = ""
    for line in lines.splitlines():
        if line.startswith("$ "):
            out = io.StringIO()
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
                code = main(shlex.split(line.removeprefix("$ "))[1:])
            printed = plain(out.getvalue())
            assert code in (0, 1), out.getvalue()
        elif line.strip():
            assert plain(line).strip() in printed, f"{name}: {line}"


def test_there_are_recipes() -> None:
    assert len(RECIPES) >= 8
    used = " ".join(lines for _, lines in RECIPES)
    assert {path.name for path in (DOCS / "workloads").glob("*.json*")} <= set(
        re.findall(r"\w+\.jsonl?", used)
    )
