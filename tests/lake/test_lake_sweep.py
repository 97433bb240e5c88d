"""`fdtrace sweep LAKE`: each variant on all traces that are chosen of a lake."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fdtrace.cli import main
from fdtrace.recorder.lake.lake_name import LakeName
from fdtrace.recorder.lake.push_trace import PushLabels, push_trace
from tests.lake.conftest import OtherTrace

Captured = pytest.CaptureFixture[str]
VARY = ["--vary", "max_num_seqs=8,16", "-f", "pr7499", "--arrivals", "steps", "--jobs", "1", "--json"]


def test_a_sweep_over_the_chosen_traces_of_a_lake(
    another: OtherTrace, lake: LakeName, capsys: Captured
) -> None:
    for name, deployment in (("a", "chat"), ("b", "chat"), ("c", "code")):
        push_trace(another(name, host=name), lake, PushLabels(deployment, {}))

    def steps(*options: str) -> list[Any]:
        assert main(["sweep", str(lake), *VARY, *options]) == 0
        rows: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["rows"]
        return [row["steps"] for row in rows]

    one = steps("--newest", "1")
    assert all(count > 100 for count in one)
    assert steps("--deployment", "chat") == [2 * count for count in one]
    assert steps() == [3 * count for count in one]
    assert main(["sweep", str(lake), *VARY, "--deployment", "none"]) == 2
    assert "no trace of" in capsys.readouterr().err
    assert main(["sweep", str(lake), *VARY, "--newest", "0"]) == 2
