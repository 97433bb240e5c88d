"""Samples NVML's used memory of an engine's device. It runs in the collector, never inside the engine."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

PERIOD = 0.1
"""Seconds between two samples."""


class Nvml:
    """Used bytes of each device over time. If there is no driver, `missing` says why, and nothing is sampled."""

    def __init__(self) -> None:
        self.missing = ""
        self.handles: list[Any] = []
        self.samples: list[tuple[int, ...]] = []
        self.next_sample = 0.0
        self.devices: dict[int, int] = {}
        self.separate = True
        try:
            import pynvml

            pynvml.nvmlInit()
            self.nvml = pynvml
            self.handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        except Exception as error:
            self.missing = f"no NVML ({error}): device_used_bytes is NULL"
        if not self.missing and not self.handles:
            self.missing = "NVML knows no device: device_used_bytes is NULL"

    def sample(self) -> None:
        """Take a sample if the next one is due."""
        now = time.monotonic()
        if not self.handles or now < self.next_sample:
            return
        self.next_sample = now + PERIOD
        try:
            used = tuple(self._used_of(handle) for handle in self.handles)
        except self.nvml.NVMLError as error:
            self.missing, self.handles = (
                f"NVML stopped answering ({error}): device_used_bytes is NULL from then on",
                [],
            )
            return
        self.samples.append((time.time_ns(), *used))

    def _used_of(self, handle: Any) -> int:
        """Used bytes of a device, as `nvidia-smi` prints them: without what the driver reserves for itself.

        Version 2 of the structure separates the two. Drivers before 510 know only the first, which has no reserve.
        """
        if self.separate:
            try:
                return int(self.nvml.nvmlDeviceGetMemoryInfo(handle, version=self.nvml.nvmlMemory_v2).used)
            except (self.nvml.NVMLError_FunctionNotFound, self.nvml.NVMLError_NotSupported):
                self.separate = False
        return int(self.nvml.nvmlDeviceGetMemoryInfo(handle).used)

    def device_of(self, pid: int) -> int:
        """The device on which a process computes. 0 if NVML does not say, for example in another pid namespace."""
        if pid not in self.devices:
            self.devices[pid] = 0
            for i, handle in enumerate(self.handles):
                try:
                    running = self.nvml.nvmlDeviceGetComputeRunningProcesses(handle)
                except self.nvml.NVMLError:
                    continue
                if any(process.pid == pid for process in running):
                    self.devices[pid] = i
                    break
        return self.devices[pid]

    def used(self, pid: int, at_ns: NDArray[np.int64]) -> NDArray[np.int64]:
        """Used bytes at each time: the last sample before that time; -1 if there is none."""
        if not self.samples:
            return np.full(len(at_ns), -1, np.int64)
        samples = np.array(self.samples, np.int64)
        index = np.searchsorted(samples[:, 0], at_ns, side="right") - 1
        values = samples[:, 1 + self.device_of(pid)]
        return np.where(index >= 0, values[np.maximum(index, 0)], -1)

    def forget(self) -> None:
        """Drop old samples: all later steps come after them."""
        del self.samples[:-50]
