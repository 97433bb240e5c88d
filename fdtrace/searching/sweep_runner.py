"""What runs the variants of a sweep: on one trace or case (`SweepWorker`), or on several (`ManySources`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from fdtrace.replayer.search.sweep_grid import SweepRow, SweepValue
from fdtrace.searching.sweeping import SweepInput

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fdtrace.replayer.recorded.time_model import TimeModel


class SweepRunner(Protocol):
    """Their methods are described at `SweepWorker`."""

    def inputs(self) -> tuple[SweepInput, ...]: ...

    def row(self, settings: Mapping[str, SweepValue]) -> SweepRow: ...

    def recorded_settings(self, names: Sequence[str]) -> dict[str, SweepValue] | None: ...

    def time_model(self, settings: Mapping[str, SweepValue]) -> TimeModel | None: ...

    def columns(self, settings: Mapping[str, SweepValue]) -> Mapping[str, NDArray[Any]]: ...

    def reasons(self, settings: Mapping[str, SweepValue], index: int) -> list[str]: ...

    def close(self) -> None: ...
