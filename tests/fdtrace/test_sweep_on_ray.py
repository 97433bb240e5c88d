"""A sweep on a real Ray cluster of two nodes: the same results as here, also where a node is killed in the middle."""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fdtrace.cli import main
from fdtrace.recorder.errors import UsageError
from fdtrace.searching.sweep_on_ray import RayCluster, ray_address
from fdtrace.searching.sweep_places import OneProcess
from fdtrace.searching.sweeping import SweepSource, SweepWorker

STORE = 80 * 2**20
"""Bytes of a node's object store: a little more than the least that Ray takes."""
PROMPTS = {"max_num_batched_tokens": 256, "block_size": 16, "max_model_len": 512, "num_blocks": 400}
GRID = [
    {"max_num_seqs": seqs, "max_num_batched_tokens": limit} for seqs in range(4, 28) for limit in (96, 192)
]


@pytest.fixture
def case(tmp_path: Path) -> Path:
    """A case whose variants take some tenths of a second each."""
    path = tmp_path / "case.json"
    requests = [
        {"id": f"r{i}", "arrival": 3 * i, "prompt": 90 + i % 40, "output": 200, "accepts": [i % 3]}
        for i in range(300)
    ]
    path.write_text(
        json.dumps({"max_num_seqs": 8, "num_speculative_tokens": 3, **PROMPTS, "requests": requests})
    )
    return path


def source(path: Path) -> SweepSource:
    return SweepSource(path, None, {"formula": "exact"}, None, None, sys.executable)


def test_only_ray_is_a_place() -> None:
    assert ray_address("ray") is None
    assert ray_address("ray://host:10001") == "ray://host:10001"
    for text in ("ray://", "dask", "http://host"):
        with pytest.raises(UsageError, match="is no place"):
            ray_address(text)


def test_without_ray_it_says_what_to_install(
    case: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    options = ["sweep", str(case), "--vary", "max_num_seqs=4,8", "-f", "exact", "--on", "ray"]
    assert main(options) == 2
    assert "fdtrace[ray]" in capsys.readouterr().err
    assert main([*options, "--jobs", "2"]) == 2
    assert "one of them" in capsys.readouterr().err


@pytest.fixture(scope="module")
def cluster() -> Iterator[tuple[Any, Any, str]]:
    """Two nodes, a process tree each, and the address of the server for clients."""
    ray = pytest.importorskip("ray", reason="Ray is not installed here: python -m pip install 'fdtrace[ray]'")
    waits = pytest.MonkeyPatch()
    waits.setenv("RAY_raylet_start_wait_time_s", "600")  # a node of a loaded machine takes its time to start
    made = importlib.import_module("ray.cluster_utils").Cluster
    options = {"num_cpus": 1, "object_store_memory": STORE, "include_dashboard": False}
    cluster = made(initialize_head=True, head_node_args=options)
    node = cluster.add_node(num_cpus=1, object_store_memory=STORE)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
    yield ray, cluster, node
    ray.shutdown()
    cluster.shutdown()
    waits.undo()


@pytest.mark.xdist_group("ray")
def test_a_cluster_that_loses_a_node_loses_no_result(cluster: tuple[Any, Any, Any], case: Path) -> None:
    ray, nodes, node = cluster
    worker = SweepWorker(source(case))
    expected = dict(OneProcess(worker).rows(GRID))
    found: dict[int, Any] = {}
    assert ray.cluster_resources()["CPU"] == 2
    with RayCluster(worker, None) as place:
        for index, row in place.rows(GRID):
            assert index not in found
            found[index] = row
            if len(found) == 12:
                nodes.remove_node(node, allow_graceful=False)
    assert found == expected
    while ray.cluster_resources()["CPU"] > 1:  # the head learns of it by missing heartbeats
        time.sleep(0.2)
    assert ray.is_initialized(), "a connection that was there before is left alone"


@pytest.mark.xdist_group("ray")
def test_the_command_says_the_same_on_a_cluster(
    cluster: tuple[Any, Any, Any], case: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["sweep", str(case), "--vary", "max_num_seqs=4,8,32", "-f", "exact", "--json"]
    assert main([*options, "--jobs", "1"]) == 0
    here = json.loads(capsys.readouterr().out)
    assert main([*options, "--on", "ray"]) == 0
    assert json.loads(capsys.readouterr().out) == here
