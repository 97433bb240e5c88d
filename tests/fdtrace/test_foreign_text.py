"""Text of a trace on the screen, in its pictures and in reports: escaped, and markup is text."""

from __future__ import annotations

import re
import shutil
from html import unescape
from pathlib import Path
from xml.etree import ElementTree as ET

import duckdb
import pytest

from fdtrace.cli import main
from tests.fdtrace.hostile import SPOOF

Captured = pytest.CaptureFixture[str]
RAW = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


@pytest.fixture
def spoofing(trace: Path, tmp_path: Path) -> Path:
    """A trace with control characters and markup in every text, and markup in its name."""
    path = tmp_path / "a[x][b].duckdb"
    shutil.copy(trace, path)
    with duckdb.connect(str(path)) as db:
        db.execute(
            f"UPDATE engine SET name = '[b]' || {SPOOF}, version = {SPOOF}, host = {SPOOF}, spec_method = {SPOOF}"
        )
        db.execute(f"UPDATE request SET request_id = '[/b]' || request || {SPOOF}")
        db.execute(f"UPDATE event SET reason = {SPOOF}, detail = '[/]' || {SPOOF}")
        db.execute(f"UPDATE trace SET notes = json_array('[red]' || {SPOOF}), ended_by = {SPOOF}")
        db.execute(f"UPDATE step SET not_admitted = {SPOOF}")
    return path


def test_it_keeps_its_name_and_its_markup_in_info_and_reports(spoofing: Path, capsys: Captured) -> None:
    for arguments in (["info"], ["replay", "--report", "-f", "pr7499"], ["check", "-f", "pr7499"]):
        assert main([arguments[0], str(spoofing), *arguments[1:]]) in (0, 1)
        said = capsys.readouterr()
        assert not RAW.search(said.out + said.err)
        if arguments[0] == "info":
            assert str(spoofing) in said.out
        if arguments[0] != "check":
            assert r"[b]\x1b]0;OWNED\x07\x1b[31mSPOOF\x9b2J\u202e\x7f\r" in said.out
            assert r"note: [red]\x1b]0;OWNED" in said.out


@pytest.mark.parametrize(
    "keys", ["n n enter", "n tab j r", "n : s q l space F R O M space r e q u e s t enter"]
)
@pytest.mark.slow
def test_it_is_text_on_the_screen(spoofing: Path, tmp_path: Path, keys: str) -> None:
    svg, html = tmp_path / "screen.svg", tmp_path / "screen.html"
    arguments = ["replay", str(spoofing), "-f", "pr7499", "--size", "160x50", "--keys", keys]
    assert main([*arguments, "--svg", str(svg)]) == 0
    assert main([*arguments, "--html", str(html)]) == 0
    picture, page = svg.read_text(), unescape(html.read_text())
    ET.fromstring(picture)
    assert not RAW.search(picture)
    assert not RAW.search(page)
    shown = "".join(re.findall(r"<text[^>]*>(.*?)</text>", unescape(picture).replace("\xa0", " ")))
    assert r"[b]\x1b]0;OWNED" in shown
    if "tab" not in keys:
        assert "[/b]" in shown


def test_an_error_about_a_file_shows_its_name(tmp_path: Path, capsys: Captured) -> None:
    path = tmp_path / "a[b]\x1b[31m\nfdtrace: all is well.duckdb"
    path.write_text("no trace")
    assert main(["info", str(path)]) == 3
    said = capsys.readouterr().err
    assert not RAW.search(said)
    assert len([line for line in said.splitlines() if line.startswith("fdtrace: ")]) == 1
    assert r"a[b]\x1b[31m" in said


def test_a_file_whose_name_is_no_utf_8(trace: Path, tmp_path: Path, capsys: Captured) -> None:
    path = tmp_path / "a\udcff.duckdb"
    shutil.copy(trace, path)
    assert main(["info", str(path)]) == 3
    assert "its name is no UTF-8" in capsys.readouterr().err
