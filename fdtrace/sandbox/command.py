"""The command `fdtrace sandbox`: its options, and how it runs an engine from `ready` to its counts."""

from __future__ import annotations

import argparse
import math
import os
import signal
import sys
from contextlib import ExitStack
from difflib import get_close_matches
from types import FrameType
from typing import Any

from fdtrace.recorder.errors import UsageError
from fdtrace.replayer.workload.case_variables import MODELLED
from fdtrace.sandbox import framework
from fdtrace.sandbox.engine_config import EngineConfig
from fdtrace.sandbox.engine_counts import Counts
from fdtrace.sandbox.engine_loop import SandboxEngine
from fdtrace.sandbox.sandbox_scheduler import model_of
from fdtrace.sandbox.seeded_load import Load, LoadShape

_SIZES = {
    "max_num_batched_tokens": "the scheduler's limit, tokens a step",
    "max_num_seqs": "most sequences that run at once",
    "num_speculative_tokens": "drafts a decode and step",
    "block_size": "tokens a KV block",
    "num_blocks": "KV blocks in all",
    "max_model_len": "most tokens of a sequence",
    "seed": "seeds the weights and the load",
    "num_layers": "layers of the model",
    "num_heads": "attention heads",
    "head_dim": "size of a head",
    "ffn_size": "size of the feed-forward",
    "vocab_size": "tokens that there are",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `fdtrace sandbox` to `parser`."""
    _add_engine_arguments(parser.add_argument_group("engine"))
    _add_load_arguments(parser.add_argument_group("load (arrivals go by steps, so that two runs are equal)"))
    group = parser.add_argument_group("run")
    group.add_argument("--steps", type=int, metavar="N", help="stop after N steps")
    group.add_argument(
        "--step-s", type=_seconds, default=0.0, metavar="S", help="least duration of a step (default 0)"
    )
    group.add_argument(
        "--device", choices=("cpu", "gpu", "auto"), default="auto", help="default: a GPU if there is one"
    )
    group.add_argument("--log-steps", metavar="PATH", help="write one JSON line a step: what it really ran")


def _add_engine_arguments(group: Any) -> None:
    defaults = EngineConfig()
    for name, text in _SIZES.items():
        default = getattr(defaults, name)
        group.add_argument(
            _option(name), type=int, default=default, metavar="N", help=f"{text} (default {default})"
        )
    group.add_argument("--spec-method", choices=("ngram", "none"), default="ngram", help="default ngram")
    group.add_argument("--no-chunked-prefill", action="store_true", help="prefill each prompt in one piece")
    group.add_argument(
        "--formula",
        default=defaults.formula,
        help=f"budget formula: a name or expression (default {defaults.formula})",
    )
    group.add_argument(
        "--policy", default=defaults.policy, help=f"scheduler version (default {defaults.policy})"
    )
    group.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="FD_NAME=VALUE",
        help="one of FastDeploy's scheduling variables; repeatable",
    )


def _add_load_arguments(group: Any) -> None:
    shape = LoadShape()
    group.add_argument("--requests", type=int, metavar="N", help="requests in all (default: no end)")
    for name in ("prompt", "output", "abort_after"):
        low, high = getattr(shape, name)
        unit = "steps from arrival to abort" if name == "abort_after" else f"{name} tokens"
        group.add_argument(
            _option(name),
            type=_range,
            default=(low, high),
            metavar="LOW:HIGH",
            help=f"{unit} (default {low}:{high})",
        )
    group.add_argument(
        "--arrival-gap",
        type=_steps,
        default=shape.arrival_gap,
        metavar="STEPS",
        help=f"mean steps between arrivals; 0: only as --backlog asks (default {shape.arrival_gap})",
    )
    group.add_argument(
        "--backlog", type=int, default=shape.backlog, metavar="N", help="requests kept waiting"
    )
    group.add_argument(
        "--max-waiting",
        type=int,
        default=shape.max_waiting,
        metavar="N",
        help=f"requests that wait at most; further arrivals come later (default {shape.max_waiting})",
    )
    group.add_argument(
        "--abort-share", type=_share, default=0.0, metavar="P", help="share of requests given up"
    )


def run(args: argparse.Namespace) -> int:
    """Run the engine that `args` describe until it is told to stop; 0 also where its formula hangs.

    stdout holds `ready PID` and, at the end, the engine's own counts as one line of JSON. Raises
    `FdtraceError`.
    """
    if args.steps is not None and args.steps < 1:
        raise UsageError(f"--steps is {args.steps}", hint="1 or more")
    config = config_from(args)
    load = Load(_shape_from(args), config)
    model_of(config)  # what is wrong with the formula is said before the seconds that loading takes
    with ExitStack() as stack:
        log = stack.enter_context(_open_log(args.log_steps)) if args.log_steps else None
        paddle = framework.load(args.device)
        stop = stack.enter_context(
            _StopSignal()
        )  # after loading: Paddle brings a handler of its own for SIGTERM
        engine = SandboxEngine(config, load, paddle, step_s=args.step_s, log=log)
        engine.runner.warm_up()
        print(f"ready {os.getpid()}", flush=True)
        counts = engine.run(max_steps=args.steps, stop=stop)
        _note(counts, paddle.device.get_device())
        print(counts.json(), flush=True)
    return 0


def config_from(args: argparse.Namespace) -> EngineConfig:
    """The engine's configuration from parsed options."""
    return EngineConfig(
        **{name: getattr(args, name) for name in _SIZES},
        spec_method=None if args.spec_method == "none" else args.spec_method,
        chunked_prefill=not args.no_chunked_prefill,
        formula=args.formula,
        policy=args.policy,
        env=dict(_variable(text) for text in args.env),
    )


def _shape_from(args: argparse.Namespace) -> LoadShape:
    return LoadShape(
        num_requests=args.requests,
        prompt=args.prompt,
        output=args.output,
        arrival_gap=args.arrival_gap,
        backlog=args.backlog,
        max_waiting=args.max_waiting,
        abort_share=args.abort_share,
        abort_after=args.abort_after,
    )


def _note(counts: Counts, device: str) -> None:
    print(
        f"sandbox: {counts.steps} steps on {device}, {counts.exceeded_steps} over the limit", file=sys.stderr
    )
    if counts.hang:
        print(f"sandbox: hangs from step {counts.hang['step']} on: {counts.hang['cause']}", file=sys.stderr)


def _open_log(path: str) -> Any:
    try:
        return open(path, "w", encoding="utf-8", buffering=1)  # a line a step, also when the engine is killed
    except OSError as error:
        raise UsageError(f"cannot write {path}", why=error.strerror or str(error)) from error


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _range(text: str) -> tuple[int, int]:
    """`LOW:HIGH` or one number for both."""
    low, colon, high = text.partition(":")
    try:
        return int(low), int(high if colon else low)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r:.40} is no range: write LOW:HIGH, as 24:320, or one number"
        ) from None


def _seconds(text: str) -> float:
    return _least(text, "seconds")


def _steps(text: str) -> float:
    return _least(text, "steps")


def _share(text: str) -> float:
    return _least(text, "a share")


def _least(text: str, what: str) -> float:
    """A number, 0 or more."""
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not 0 <= found < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r:.40} is no number of {what}: write 0 or more")
    return found


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name.startswith("FD_"):
        raise UsageError(f"--env {text}", hint="--env FD_NAME=VALUE")
    if name not in MODELLED:
        near = get_close_matches(name, MODELLED, 1)
        raise UsageError(f"--env {text}: the sandbox reads no {name}", hint=", ".join(near or MODELLED))
    return name, value


class _StopSignal:
    """True once SIGINT or SIGTERM came; the step in progress is finished first."""

    def __init__(self) -> None:
        self._stopped = False
        self._before: dict[int, Any] = {}

    def __call__(self) -> bool:
        return self._stopped

    def __enter__(self) -> _StopSignal:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._stop) or signal.SIG_DFL
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        self._stopped = True
