"""How a lake is written, and what is refused."""

from __future__ import annotations

import sys
from pathlib import Path

import duckdb
import pytest

from fdtrace.cli import main
from fdtrace.recorder.errors import UsageError
from fdtrace.recorder.lake.lake_connection import extension_path
from fdtrace.recorder.lake.lake_errors import LakeError
from fdtrace.recorder.lake.lake_name import parse_lake, parse_lake_trace
from fdtrace.recorder.lake.push_trace import PushLabels
from fdtrace.trace_argument import trace_argument


def test_a_directory_holds_catalog_and_data(tmp_path: Path) -> None:
    lake = parse_lake(f"ducklake:{tmp_path}")
    assert lake.attachment == f"ducklake:sqlite:{tmp_path}/catalog.sqlite"
    assert lake.data == f"{tmp_path}/data/"
    assert parse_lake(str(lake)) == lake


def test_a_catalog_in_postgres_is_written_as_ducklake_writes_it() -> None:
    lake = parse_lake("ducklake:postgres:dbname=fleet host=db?data=s3://bucket/path")
    assert lake.attachment == "ducklake:postgres:dbname=fleet host=db"
    assert lake.data == "s3://bucket/path/"
    assert parse_lake("ducklake:postgres:dbname=fleet").data is None
    assert parse_lake(str(lake)) == lake


def test_a_trace_is_the_last_part() -> None:
    name = parse_lake_trace("ducklake:postgres:dbname=fleet?data=s3://b/p/20261127T035400-8c1d")
    assert name.trace_id == "20261127T035400-8c1d"
    assert name.lake.data == "s3://b/p/"
    assert parse_lake_trace("ducklake:/a/20261127").trace_id is None
    assert trace_argument("s3.duckdb") == Path("s3.duckdb")


@pytest.mark.parametrize(
    "text",
    [
        "ducklake:postgres:dbname=f password=x",
        "ducklake:postgres:dbname=f PASSWORD = x?data=s3://b",
        "ducklake:postgres:postgresql://me:x@db/f",
        "ducklake:postgres:postgresql://db/f?password=x",
        "ducklake:postgres:dbname=f?data=s3://key:x@b/p",
    ],
)
def test_a_password_is_refused_and_not_repeated(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", text]) == 2
    said = capsys.readouterr().err
    assert "PGPASSWORD" in said
    assert text not in said


@pytest.mark.parametrize(
    "text", ["lake", "ducklake:", "ducklake:d?data=e", "ducklake:\udcff", "ducklake:a\0b"]
)
def test_what_names_no_lake_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_lake(text)


@pytest.mark.parametrize("name", ["", "..", "a/b", "a'b", "a b", "\x1b[31m", "x" * 101, "é"])
def test_a_deployment_is_a_name(name: str) -> None:
    with pytest.raises(UsageError, match="no name of a deployment"):
        PushLabels(name, {})
    with pytest.raises(UsageError, match="no name of a label"):
        PushLabels("default", {name: "value"})


def test_a_label_is_a_text() -> None:
    PushLabels("default", {"note": "any text, '; DROP, \x1b, é"})
    for value in ("x" * 1001, "a\0b", "\udcff"):
        with pytest.raises(UsageError, match="no text"):
            PushLabels("default", {"note": value})


def test_a_command_that_takes_one_trace_refuses_a_lake(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "ducklake:/a/lake"]) == 2
    assert "a lake of many traces" in capsys.readouterr().err
    assert main(["pull", "ducklake:/a/lake", "-o", "x.duckdb"]) == 2
    assert "fdtrace list" in capsys.readouterr().err


def test_without_the_extra_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "duckdb_extension_made_up" / "extensions" / "v0.9.9"
    package.mkdir(parents=True)
    (package.parents[1] / "__init__.py").write_text("")
    (package / "made_up.duckdb_extension").write_text("")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    with pytest.raises(LakeError) as missing:
        extension_path("no_such")
    with pytest.raises(LakeError) as other:
        extension_path("made_up")
    assert "fdtrace[fleet]" in missing.value.hint
    assert f"made for v0.9.9, but DuckDB {duckdb.__version__} is installed" in other.value.why
