"""A formula on transformers' own scheduler gives its token budget. A rule that this scheduler does not take is refused
before the scheduler is started, so no transformers is needed here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import fdtrace
from fdtrace.cli import main
from tests.fdtrace.test_standstill import Recorded

Captured = pytest.CaptureFixture[str]
REAL = ["--scheduler", "transformers"]
REFUSED = "charge of formula '{name}' cannot be used with --scheduler transformers"


class Charged:
    """A budget of 8, of which each decode takes 2."""

    name = "charged"

    def budget(self, v: Any) -> int:
        return 8

    def charge(self, v: Any) -> int:
        return 2


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    recorded = Recorded(tmp_path_factory.mktemp("recorded") / "t.duckdb", "transformers")
    recorded.ran(0)
    return recorded.end()


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ([*REAL, "-f", "original"], "original"),
        ([*REAL, "-f", "mine: 8; charge 1"], "mine"),
        (["-w", "mine: formula=exact"], "exact"),
    ],
)
@pytest.mark.parametrize("command", ["replay", "check"])
def test_a_charge_is_refused_with_its_reason_and_what_to_do(
    command: str, options: list[str], name: str, trace: Path, capsys: Captured
) -> None:
    more = ["--report"] if command == "replay" else []
    assert main([command, str(trace), *options, *more]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert REFUSED.format(name=name) in said
    assert "transformers itself takes from its budget the tokens of each request" in said
    assert "leave it out: it takes budget" in said


def test_the_library_refuses_it_too(trace: Path) -> None:
    with pytest.raises(fdtrace.UsageError, match="cannot be used with --scheduler transformers"):
        fdtrace.replay(str(trace), variants={"mine": {"formula": "8; charge 1"}})
    with pytest.raises(fdtrace.UsageError, match=r"charge, admit of formula .* cannot be used"):
        fdtrace.replay(str(trace), variants={"mine": {"formula": "8; charge 1; admit 1"}})
