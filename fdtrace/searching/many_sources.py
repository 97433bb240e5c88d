"""A sweep over several traces or cases: each variant is run on all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from fdtrace.recorder.errors import UsageError
from fdtrace.replayer.search.sweep_combined import combined_row
from fdtrace.replayer.search.sweep_grid import SweepRow, SweepValue
from fdtrace.searching.sweep_advice import model_error
from fdtrace.searching.sweep_runner import SweepRunner
from fdtrace.searching.sweeping import SweepInput, SweepSource, SweepWorker

if TYPE_CHECKING:
    from typing import Any

    from numpy.typing import NDArray

    from fdtrace.replayer.recorded.time_model import TimeModel


def runner_of(sources: Sequence[SweepSource]) -> SweepRunner:
    """What runs the variants on these sources. FdtraceError: one of them cannot be read."""
    return _runner([SweepWorker(source) for source in sources])


def runner_of_inputs(inputs: Sequence[SweepInput], python: str) -> SweepRunner:
    """The same in another process, which has what the first one read; `python` runs real schedulers there."""
    return _runner([SweepWorker(replace(given.source, python=python), given) for given in inputs])


def _runner(workers: Sequence[SweepWorker]) -> SweepRunner:
    return workers[0] if len(workers) == 1 else ManySources(workers)


class ManySources:
    """Runs each variant on every source. `combined_row` makes one result of theirs."""

    def __init__(self, workers: Sequence[SweepWorker]) -> None:
        self.workers = workers
        self.names = [worker.source.path.stem for worker in workers]

    def inputs(self) -> tuple[SweepInput, ...]:
        """What has been read of each."""
        return tuple(given for worker in self.workers for given in worker.inputs())

    def row(self, settings: Mapping[str, SweepValue]) -> SweepRow:
        """The combined figures of one variant; `refused` names the first source where it cannot be run, and why."""
        return combined_row(settings, self.names, [worker.row(settings) for worker in self.workers])

    def recorded_settings(self, names: Sequence[str]) -> dict[str, SweepValue] | None:
        """The recorded values of these settings, if all sources have the same; else None."""
        first, *others = [worker.recorded_settings(names) for worker in self.workers]
        return first if all(settings == first for settings in others) else None

    def time_model(self, settings: Mapping[str, SweepValue]) -> TimeModel | None:
        """The least sure of the sources' models of a step's time; None: one has none."""
        models = [worker.time_model(settings) for worker in self.workers]
        known = [model for model in models if model is not None]
        return max(known, key=model_error) if len(known) == len(models) else None

    def columns(self, settings: Mapping[str, SweepValue]) -> Mapping[str, NDArray[Any]]:
        """Raises a UsageError: the steps of several sources are no one history."""
        raise UsageError(f"{len(self.workers)} sources have no common steps")

    def reasons(self, settings: Mapping[str, SweepValue], index: int) -> list[str]:
        """None: as `columns`."""
        return []

    def close(self) -> None:
        """End what the workers started."""
        for worker in self.workers:
            worker.close()
