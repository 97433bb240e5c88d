"""NVML: sampled beside the engine; NULL, and said once, where there is no driver. The driver alone is a double."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fdtrace.recorder.collector.nvml import Nvml
from tests.recorder.helpers import armed_environment, collected, finish, query, start_engine


class FakeError(Exception):
    pass


class FakeMissingError(FakeError):
    pass


RESERVED = 1000
VERSION_2 = 0x02000028


def driver(used: list[list[int]], processes: dict[int, list[int]], *, old: bool = False) -> Any:
    """A pynvml whose devices use `used[i].pop(0)` bytes and run `processes[i]`.

    From driver 510 on (not `old`) the first structure counts what the driver reserves as used, and the second does not.
    """
    module = types.ModuleType("pynvml")

    def memory(i: int, version: int | None = None) -> Any:
        if not used[i]:
            raise FakeError("GPU is lost")
        if version is not None:
            assert version == VERSION_2
            if old:
                raise FakeMissingError("Function Not Found")
            return types.SimpleNamespace(used=used[i].pop(0), reserved=RESERVED)
        return types.SimpleNamespace(used=used[i].pop(0) + (0 if old else RESERVED))

    members = {
        "NVMLError": FakeError,
        "NVMLError_FunctionNotFound": FakeMissingError,
        "NVMLError_NotSupported": FakeMissingError,
        "nvmlMemory_v2": VERSION_2,
        "nvmlInit": lambda: None,
        "nvmlDeviceGetCount": lambda: len(used),
        "nvmlDeviceGetHandleByIndex": lambda i: i,
        "nvmlDeviceGetMemoryInfo": memory,
        "nvmlDeviceGetComputeRunningProcesses": lambda i: [
            types.SimpleNamespace(pid=pid) for pid in processes[i]
        ],
    }
    for name, value in members.items():
        setattr(module, name, value)
    return module


@pytest.mark.parametrize("old", [False, True])
def test_a_step_has_the_last_sample_before_its_end_of_its_own_device(
    old: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = driver([[1, 2, 3], [10, 20, 30]], {0: [5], 1: [77]}, old=old)
    monkeypatch.setitem(sys.modules, "pynvml", module)
    nvml = Nvml()
    for _ in range(3):
        nvml.next_sample = 0.0
        nvml.sample()
    times = np.array([sample[0] for sample in nvml.samples], np.int64)
    at = np.array([times[0] - 1, times[0], times[1], times[2] + 10**9], np.int64)
    assert nvml.used(77, at).tolist() == [-1, 10, 20, 30]
    assert nvml.used(5, at).tolist() == [-1, 1, 2, 3]
    assert nvml.used(404, at).tolist() == [-1, 1, 2, 3], (
        "a pid that NVML does not know is looked for on device 0"
    )


def test_a_driver_that_stops_answering_ends_the_sampling_and_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", driver([[1]], {0: []}))
    nvml = Nvml()
    for _ in range(3):
        nvml.next_sample = 0.0
        nvml.sample()
    assert "GPU is lost" in nvml.missing
    assert len(nvml.samples) == 1


def test_the_double_has_the_names_of_the_real_module() -> None:
    real = pytest.importorskip("pynvml")
    for name in vars(driver([[1]], {0: []})):
        assert hasattr(real, name), name
    assert real.nvmlMemory_v2 == VERSION_2


def test_without_a_driver_the_column_is_null_and_it_is_said_once(tmp_path: Path) -> None:
    if not Nvml().missing:
        pytest.skip("this machine has an NVIDIA driver")
    trace = tmp_path / "t.duckdb"
    with collected(trace) as (session, supervisor):
        start_engine("--steps", 30, env=armed_environment(session)).communicate(timeout=900)
        finish(supervisor)
    assert query(trace, "SELECT count(*), count(device_used_bytes) FROM step") == [(30, 0)]
    ((notes,),) = query(trace, "SELECT notes FROM trace")
    assert sum("NVML" in note for note in json.loads(notes)) == 1
