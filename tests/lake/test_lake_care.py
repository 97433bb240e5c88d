"""What looks after a lake: old traces go, files that nothing needs go, small files are merged."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from fdtrace.cli import main
from fdtrace.recorder.lake import expire_traces as expiring
from fdtrace.recorder.lake.expire_traces import compact_lake, expire_traces
from fdtrace.recorder.lake.lake_name import LakeName, LakeTraceName
from fdtrace.recorder.lake.pull_trace import list_traces, pull_trace
from fdtrace.recorder.lake.push_trace import PushLabels, push_trace
from tests.lake.conftest import OtherTrace
from tests.lake.test_lake import CHAT, contents


def test_old_traces_go_and_their_files_after_the_grace(
    another: OtherTrace, lake: LakeName, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = [push_trace(another(f"old{i}", days=40 + i), lake, CHAT).trace_id for i in range(2)]
    new = push_trace(another("new"), lake, CHAT).trace_id
    others = push_trace(another("others", days=50), lake, PushLabels("other", {})).trace_id
    data = tmp_path / "lake" / "data"
    files = set(data.rglob("*.parquet"))
    assert main(["lake", "expire", str(lake), "--older", "30d", "--deployment", "chat", "--dry-run"]) == 0
    assert capsys.readouterr().out.split() == sorted(old)
    assert len(list_traces(lake)) == 4
    assert main(["lake", "expire", str(lake), "--older", "30d", "--deployment", "chat"]) == 0
    assert capsys.readouterr().out.split() == sorted(old)
    assert {row["trace_id"] for row in list_traces(lake)} == {new, others}
    assert set(data.rglob("*.parquet")) >= files, "a query that runs may still need them"
    before = datetime.now(timezone.utc) - timedelta(days=30)
    expire_traces(lake, before, grace=timedelta(0))
    assert [row["trace_id"] for row in list_traces(lake)] == [new]
    left = set(data.rglob("*.parquet"))
    days = {file.parents[1].name for file in left}
    assert len(days) == 1
    pull_trace(LakeTraceName(lake, new), tmp_path / "t.duckdb")
    assert len(contents(tmp_path / "t.duckdb")["step"]) == 300


def test_files_that_no_catalog_names_go_when_no_push_can_be_writing_them(
    recorded: Path, lake: LakeName, monkeypatch: pytest.MonkeyPatch
) -> None:
    push_trace(recorded, lake, CHAT)
    files = sorted((Path(lake.connection).parent / "data").rglob("*.parquet"))
    orphan = files[0].with_name("ducklake-left.parquet")
    orphan.write_bytes(files[0].read_bytes())
    long_ago = datetime(2000, 1, 1, tzinfo=timezone.utc)
    expire_traces(lake, long_ago, grace=timedelta(0))
    assert orphan.exists(), "a push that still runs may have written it"
    monkeypatch.setattr(expiring, "LONGEST_PUSH", timedelta(0))
    assert expire_traces(lake, long_ago, grace=timedelta(0)).num_files == 1
    assert not orphan.exists()
    assert sorted((Path(lake.connection).parent / "data").rglob("*.parquet")) == files


def test_merging_small_files_changes_no_trace(another: OtherTrace, lake: LakeName, tmp_path: Path) -> None:
    paths = [another(f"t{i}", host=f"h{i}") for i in range(3)]
    ids = [push_trace(path, lake, CHAT).trace_id for path in paths]
    assert compact_lake(lake) > 0
    for path, trace_id in zip(paths, ids, strict=True):
        pulled = tmp_path / f"{trace_id}.duckdb"
        pull_trace(LakeTraceName(lake, trace_id), pulled)
        assert contents(pulled) == contents(path)
