"""`--scheduler ENGINE=DIR` of the command line: the real scheduler of an engine's checkout, beside the formulas."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recorder.errors import UsageError

if TYPE_CHECKING:
    from fdtrace.drivers.scheduler import DrivenScheduler
    from replayer.config import SchedulerConfig

DRIVERS = {"fastdeploy": "fastdeploy/engine/sched/resource_manager_v1.py"}
"""Engine -> the file of a checkout that its driver drives."""


def add_scheduler_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that `replay` and `simulate` share."""
    parser.add_argument(
        "--scheduler",
        action="append",
        metavar="fastdeploy=DIR",
        help="the real scheduler of a FastDeploy checkout, on the CPU, beside the formulas; repeatable",
    )
    parser.add_argument(
        "--scheduler-python",
        default=sys.executable,
        metavar="PATH",
        help="a Python that can import Paddle and FastDeploy's requirements (default: the one that runs fdtrace)",
    )


@dataclass(frozen=True)
class GivenScheduler:
    """One checkout, and the Python that runs its scheduler."""

    name: str
    engine: str
    checkout: Path
    python: str

    @contextmanager
    def open(self, config: SchedulerConfig, env: Mapping[str, Any]) -> Iterator[DrivenScheduler]:
        """Its scheduler of these sizes, under these variables of the engine, in a process that ends with it.

        UsageError where it refuses the configuration, TargetError where it cannot be imported or driven.
        """
        import fdtrace.drivers
        from fdtrace.drivers.child import Child
        from fdtrace.drivers.scheduler import DrivenScheduler

        driver = Path(fdtrace.drivers.__file__).with_name(f"{self.engine}.py")
        given = {name: str(value) for name, value in env.items() if name.startswith("FD_")}
        with Child(driver, self.checkout, self.python, {**given, **config.env()}) as child:
            yield DrivenScheduler(child, config, self.name)


def given_schedulers(texts: Sequence[str] | None, python: str) -> list[GivenScheduler]:
    """The schedulers of repeated `--scheduler`; UsageError where one is none."""
    found = [_given(text, python) for text in texts or ()]
    names = [one.name for one in found]
    return [
        one if names.count(one.name) == 1 else GivenScheduler(text, one.engine, one.checkout, python)
        for one, text in zip(found, texts or (), strict=True)
    ]


def _given(text: str, python: str) -> GivenScheduler:
    engine, equals, where = text.partition("=")
    if not equals or engine not in DRIVERS:
        raise UsageError(f"--scheduler {text} names no scheduler", hint="--scheduler fastdeploy=DIR")
    checkout = Path(where)
    if not (checkout / DRIVERS[engine]).is_file():
        raise UsageError(
            f"{where or 'nothing'} is no checkout of {engine}", why=f"it has no {DRIVERS[engine]}"
        )
    return GivenScheduler(f"{engine}={checkout.resolve().name}", engine, checkout, python)
