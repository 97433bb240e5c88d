"""`fdtrace demo` and files that are there already."""

from __future__ import annotations

from pathlib import Path

import pytest

from fdtrace.cli import main


def test_a_file_that_was_named_is_never_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "thesis.txt"
    path.write_text("thesis")
    assert main(["demo", "-o", str(path)]) == 3
    assert "exists already" in capsys.readouterr().err
    assert path.read_text() == "thesis"
    assert list(tmp_path.iterdir()) == [path]
