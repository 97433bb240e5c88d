"""`--scheduler ENGINE[=DIR]` of the command line: an engine's real scheduler, beside the formulas."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fdtrace.recorder.errors import UsageError

if TYPE_CHECKING:
    from fdtrace.drivers.driven_scheduler import DrivenScheduler
    from fdtrace.recorder.trace.recording import Recording
    from fdtrace.replayer.config import SchedulerConfig
    from fdtrace.replayer.formulas import Formula

DRIVERS = {
    "fastdeploy": "fastdeploy/engine/sched/resource_manager_v1.py",
    "vllm": "vllm/v1/core/sched/scheduler.py",
    "transformers": "transformers/generation/continuous_batching/scheduler.py",
}
"""Engine -> the file of a checkout that its driver drives."""

INSTALLED = ("vllm", "transformers")
"""Engines whose package may be installed in the Python that runs the driver."""

QUIET = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}
"""A driven vLLM or transformers says nothing and asks no one."""

OWN_SIZES = ("vllm", "transformers")
"""Engines whose configuration no other engine's scheduler takes."""

HINT = "--scheduler vllm, --scheduler transformers, --scheduler vllm=DIR or --scheduler fastdeploy=DIR"


def add_scheduler_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that `replay` and `simulate` share."""
    parser.add_argument(
        "--scheduler",
        action="append",
        metavar="ENGINE[=DIR]",
        help="an engine's real scheduler, on the CPU, beside the formulas: fastdeploy=DIR, a checkout; vllm or "
        "transformers, the installed package; vllm=DIR, transformers=DIR, a checkout or a directory of packages; "
        "repeatable",
    )
    parser.add_argument(
        "--scheduler-python",
        default=sys.executable,
        metavar="PATH",
        help="a Python that can import the engine, or its requirements where DIR is given (default: the one that "
        "runs fdtrace)",
    )


@dataclass(frozen=True)
class GivenScheduler:
    """One engine's scheduler, the directory that holds it (None: it is installed), and the Python that runs it."""

    name: str
    engine: str
    checkout: Path | None
    python: str
    formula: Formula | None = None
    """What its token budget is in place of its own; None: its own."""

    def under(self, formula: Formula) -> GivenScheduler:
        """The same with its token budget by a formula; UsageError where it takes none."""
        if self.engine != "transformers":
            raise UsageError(
                f"{formula.name} cannot be the budget of --scheduler {self.name}",
                why=f"{self.engine} computes its budget within its scheduling call",
                hint="--as-recorded asks what a formula would have allowed in each recorded step",
            )
        return replace(self, name=formula.name, formula=formula)

    def refuse_others(self, recording: Recording) -> None:
        """UsageError where the recording is not of an engine that schedules as this one does."""
        from fdtrace.replayer.config import is_modelled

        engine = recording.engine
        if self.engine != engine.name and not {self.engine, engine.name}.isdisjoint(OWN_SIZES):
            own = "" if is_modelled(engine) else f", or --scheduler {engine.name}"
            raise UsageError(
                f"--scheduler {self.name} cannot reschedule a recording of {engine.name}",
                why=f"what {engine.name} was configured with is not what {self.engine} asks for",
                hint=f"--as-recorded{own}",
            )

    @contextmanager
    def open(
        self, config: SchedulerConfig, env: Mapping[str, Any], recorded: Mapping[str, Any] | None = None
    ) -> Iterator[DrivenScheduler]:
        """Its scheduler of these sizes, under these variables of the engine, in a process that ends with it.

        `recorded`: the rest of the engine's configuration, as `engine.config` of a recording has it. UsageError where
        it refuses the configuration, TargetError where it cannot be imported or driven.
        """
        import fdtrace.drivers
        from fdtrace.drivers.child import Child
        from fdtrace.drivers.fastdeploy_scheduler import DrivenFastDeploy
        from fdtrace.drivers.transformers_scheduler import DrivenTransformers
        from fdtrace.drivers.vllm_scheduler import DrivenVllm

        driver = Path(fdtrace.drivers.__file__).with_name(f"{self.engine}.py")
        with Child(driver, self.checkout, self.python, self._env(config, env, recorded or {})) as child:
            if self.engine == "vllm":
                yield DrivenVllm(child, config, self.name, recorded or {})
            elif self.engine == "transformers":
                yield DrivenTransformers(child, config, self.name, recorded or {}, self.formula)
            else:
                yield DrivenFastDeploy(child, config, self.name)

    def _env(
        self, config: SchedulerConfig, env: Mapping[str, Any], recorded: Mapping[str, Any]
    ) -> dict[str, str]:
        if self.engine == "vllm":
            runner = recorded.get("scheduler", {}).get("use_v2_model_runner")
            return QUIET if runner is None else {**QUIET, "VLLM_USE_V2_MODEL_RUNNER": str(int(runner))}
        if self.engine == "transformers":
            return QUIET
        given = {name: str(value) for name, value in env.items() if name.startswith("FD_")}
        return {**given, **config.env()}


def given_schedulers(texts: Sequence[str] | None, python: str) -> list[GivenScheduler]:
    """The schedulers of repeated `--scheduler`; UsageError where one is none, or is given twice."""
    schedulers = [_given(text, python) for text in texts or ()]
    if len(set(texts or ())) < len(schedulers):
        raise UsageError("the same --scheduler is given twice")
    names = [given.name for given in schedulers]
    return [
        given if names.count(given.name) == 1 else GivenScheduler(text, given.engine, given.checkout, python)
        for given, text in zip(schedulers, texts or (), strict=True)
    ]


def _given(text: str, python: str) -> GivenScheduler:
    engine, equals, where = text.partition("=")
    if engine not in DRIVERS or not (equals or engine in INSTALLED):
        raise UsageError(f"--scheduler {text} names no scheduler", hint=HINT)
    if not equals:
        return GivenScheduler(engine, engine, None, python)
    checkout = Path(where)
    if not (checkout / DRIVERS[engine]).is_file():
        raise UsageError(
            f"{where or 'nothing'} is no checkout of {engine}", why=f"it has no {DRIVERS[engine]}"
        )
    return GivenScheduler(f"{engine}={checkout.resolve().name}", engine, checkout, python)
