"""`--scheduler ENGINE[=DIR]` on the command line: an engine's real scheduler, beside the formulas."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fdtrace.recorder.errors import UsageError

if TYPE_CHECKING:
    from fdtrace.drivers.children import DriverPool
    from fdtrace.drivers.driven_scheduler import DrivenScheduler
    from fdtrace.recorder.trace.recording import Recording
    from fdtrace.replayer.config import SchedulerConfig
    from fdtrace.replayer.formulas import Formula

DRIVERS = {
    "fastdeploy": "fastdeploy/engine/sched/resource_manager_v1.py",
    "vllm": "vllm/v1/core/sched/scheduler.py",
    "transformers": "transformers/generation/continuous_batching/scheduler.py",
}
"""Engine -> the file of a checkout that holds its scheduler."""

INSTALLED = ("vllm", "transformers")
"""Engines that may also be an installed package of the Python that runs the driver."""

QUIET = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}
"""Variables for a driven vLLM or transformers: it logs only errors, and does not use the network."""

OWN_SIZES = ("vllm", "transformers")
"""Engines whose configuration no other engine's scheduler takes."""

TAKES_BUDGETS = ("vllm", "transformers")
"""Engines whose real scheduler reads its budgets at each call, so that a formula can give them."""

HINT = "--scheduler vllm, --scheduler transformers, --scheduler vllm=DIR or --scheduler fastdeploy=DIR"


def driver_of(engine: str) -> Path:
    """The script that drives an engine's scheduler in a process of its own."""
    import fdtrace.drivers

    return Path(fdtrace.drivers.__file__).with_name(f"{engine}_driver.py")


def add_scheduler_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that `replay` and `simulate` share."""
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
    """An engine's scheduler from the command line: its directory (None: it is installed), and the Python to run it."""

    name: str
    engine: str
    checkout: Path | None
    python: str
    formula: Formula | None = None
    """The formula that gives its token budget; None: its own rule does."""

    def under(self, formula: Formula) -> GivenScheduler:
        """This scheduler with a formula for its budgets. UsageError if it takes none, or not each of its rules."""
        from fdtrace.replayer.formulas.call_rules import DRIVEN_TAKES, refuse_rules

        if self.engine not in TAKES_BUDGETS:
            raise UsageError(
                f"{formula.name} cannot be the budget of --scheduler {self.name}",
                why=f"{self.engine} computes its budget within its scheduling call",
                hint="--as-recorded asks what a formula would have allowed in each recorded step",
            )
        taken, why = DRIVEN_TAKES[self.engine]
        refuse_rules(formula.name, formula.rules, taken, f"--scheduler {self.name}", why)
        return replace(self, name=formula.name, formula=formula)

    def refuse_others(self, recording: Recording) -> None:
        """UsageError if this scheduler cannot replay the recording because another engine made it."""
        from fdtrace.replayer.config import is_modelled

        engine = recording.engine
        if self.engine != engine.name and not {self.engine, engine.name}.isdisjoint(OWN_SIZES):
            alternative = "" if is_modelled(engine) else f", or --scheduler {engine.name}"
            raise UsageError(
                f"--scheduler {self.name} cannot reschedule a recording of {engine.name}",
                why=f"the configuration of {engine.name} does not fit {self.engine}",
                hint=f"--as-recorded{alternative}",
            )

    @contextmanager
    def open(
        self,
        config: SchedulerConfig,
        env: Mapping[str, Any],
        recorded: Mapping[str, Any] | None = None,
        *,
        changed: Mapping[str, Any] | None = None,
        children: DriverPool | None = None,
    ) -> Iterator[DrivenScheduler]:
        """The engine's scheduler in a process of its own. The process ends with the context.

        Args:
            config: the scheduler's sizes.
            env: the engine's environment variables.
            recorded: the rest of the engine's configuration, as in `engine.config` of a recording.
            changed: settings that differ from the recorded ones, by the engine's own names.
            children: processes that may serve several replays; None: this replay has a process of its own.

        Raises:
            UsageError: the scheduler refuses the configuration.
            TargetError: it cannot be imported or driven.
        """
        from fdtrace.drivers.children import DriverPool
        from fdtrace.drivers.fastdeploy_scheduler import DrivenFastDeploy
        from fdtrace.drivers.transformers_scheduler import DrivenTransformers
        from fdtrace.drivers.vllm_scheduler import DrivenVllm

        if changed and self.engine == "transformers":
            raise UsageError(
                "no setting of transformers can be changed in a replay",
                why="--scheduler transformers runs with the recorded configuration",
                hint="a formula replaces its token budget: -f 'few: 64'",
            )
        variables = self._env(config, env, recorded or {})
        with ExitStack() as stack:
            # FastDeploy's scheduler holds shared memory under its process's number: each has a process of its own.
            processes = children if self.engine == "vllm" else None
            processes = processes or stack.enter_context(DriverPool())
            child = stack.enter_context(
                processes.child(driver_of(self.engine), self.checkout, self.python, variables)
            )
            if self.engine == "vllm":
                yield DrivenVllm(child, config, self.name, recorded or {}, changed or {}, self.formula)
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
        from fdtrace.replayer.workload.case_variables import MODELLED

        variables = {
            name: str(value) for name, value in env.items() if name.startswith("FD_") and name not in MODELLED
        }
        return {**variables, **config.env()}


def given_schedulers(texts: Sequence[str] | None, python: str) -> list[GivenScheduler]:
    """The schedulers of repeated `--scheduler`. UsageError if a text is none, or is given twice."""
    schedulers = [_parsed(text, python) for text in texts or ()]
    if len(set(texts or ())) < len(schedulers):
        raise UsageError("the same --scheduler is given twice")
    names = [scheduler.name for scheduler in schedulers]
    return [
        scheduler
        if names.count(scheduler.name) == 1
        else GivenScheduler(text, scheduler.engine, scheduler.checkout, python)
        for scheduler, text in zip(schedulers, texts or (), strict=True)
    ]


def _parsed(text: str, python: str) -> GivenScheduler:
    engine, equals, directory = text.partition("=")
    if engine not in DRIVERS or not (equals or engine in INSTALLED):
        raise UsageError(f"--scheduler {text} names no scheduler", hint=HINT)
    if not equals:
        return GivenScheduler(engine, engine, None, python)
    checkout = Path(directory)
    if not (checkout / DRIVERS[engine]).is_file():
        raise UsageError(
            f"{directory or 'nothing'} is no checkout of {engine}", why=f"it has no {DRIVERS[engine]}"
        )
    return GivenScheduler(f"{engine}={checkout.resolve().name}", engine, checkout, python)
