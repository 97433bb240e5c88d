"""The options by which a request trace becomes a case: for `fdtrace workload` and `fdtrace simulate`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fdtrace.recorder.errors import UsageError

if TYPE_CHECKING:
    from fdtrace.request_traces.acceptances import Acceptances
    from fdtrace.request_traces.like_recording import RecordingTemplate
    from fdtrace.request_traces.trace_case import CaseOptions
    from fdtrace.request_traces.trace_entry import TextLength

LABELS = ("timestamp", "input_length", "output_length", "hash_ids")
UNITS_MS = {"ms": 1.0, "s": 1000.0}
GIVEN = (
    *("format", "label", "hash_block_size", "time_unit", "step_ms", "like", "rate", "accept", "drafts"),
    *("output_tokens", "chars_per_token", "tokenizer", "set", "first", "seed"),
)
"""The options, as their places in the parsed arguments."""


def add_workload_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how a request trace becomes a case."""
    group = parser.add_argument_group("request traces (docs/workloads.md)")
    add = group.add_argument
    add("--format", metavar="NAME", help="the format of the request trace (default: by its content)")
    add(
        "--label", action="append", metavar="FIELD=NAME",
        help="a field has another name in this file, as input_length=prompt_len; repeatable",
    )  # fmt: skip
    add(
        "--hash-block-size",
        type=int,
        metavar="N",
        help="tokens of a block of hash_ids (default: the format's)",
    )
    add("--time-unit", choices=tuple(UNITS_MS), help="unit of the timestamps (default: the format's)")
    add(
        "--step-ms",
        type=float,
        metavar="MS",
        help="milliseconds that a step counts as (default: of --like, else 20)",
    )
    add(
        "--like",
        type=Path,
        metavar="T",
        help="sizes, length of a step and acceptances as those of this recording",
    )
    add("--rate", type=float, metavar="R", help="requests a second, for a trace without times")
    add("--accept", type=float, metavar="SHARE", help="draw acceptances: this share of the drafts, as 0.7")
    add(
        "--drafts",
        type=int,
        metavar="K",
        help="drafts of a forward, with --accept (default: of --like, else 3)",
    )
    add(
        "--output-tokens", type=int, metavar="N", help="output of requests of which the trace does not say it"
    )
    add("--chars-per-token", type=float, metavar="C", help="lengths of texts by characters (default 4)")
    add("--tokenizer", type=Path, metavar="FILE", help="a tokenizer.json, to count the tokens of texts")
    add(
        "--set",
        action="append",
        metavar="KEY=VALUE",
        help="a key of the case, as max_num_seqs=64; repeatable",
    )
    add("--first", type=int, metavar="N", help="only the first N requests")
    add("--seed", type=int, metavar="N", help="of all that is drawn (default 0)")


def given_options(args: argparse.Namespace) -> list[str]:
    """The options of a request trace that the command line gives."""
    return [f"--{name.replace('_', '-')}" for name in GIVEN if getattr(args, name) is not None]


def case_options(args: argparse.Namespace) -> CaseOptions:
    """What the command line says. UsageError if a value makes no sense."""
    from fdtrace.replayer.workload.from_case import workload_from_case
    from fdtrace.request_traces.trace_case import SIZES, CaseOptions, characters_length
    from fdtrace.request_traces.trace_formats import ReadingOptions

    for name in ("step_ms", "rate", "output_tokens", "hash_block_size", "first"):
        value = getattr(args, name)
        if value is not None and not 0 < value < 1e9:
            raise UsageError(f"--{name.replace('_', '-')} is {value:g}", hint="more than 0")
    length: tuple[TextLength, str] = characters_length(
        4.0 if args.chars_per_token is None else args.chars_per_token
    )
    if args.tokenizer is not None:
        length = _tokenizer_length(args.tokenizer)
    labels = dict(_assigned(text, "--label", LABELS) for text in args.label or ())
    reading = ReadingOptions(*length, labels, args.hash_block_size, UNITS_MS.get(args.time_unit or ""))
    like, seed = _like(args), args.seed or 0
    sizes = {} if like is None else dict(like.sizes)
    sizes |= {key: _value(text) for key, text in (_assigned(text, "--set", None) for text in args.set or ())}
    workload_from_case(
        {**SIZES, **sizes, "requests": []}
    )  # a wrong key or value is said before anything is read
    return CaseOptions(
        reading=reading,
        step_ms=args.step_ms or (None if like is None else like.step_ms),
        rate=args.rate,
        output=args.output_tokens,
        acceptances=_acceptances(args, like, sizes),
        sizes=sizes,
        first=args.first,
        seed=seed,
        notes=[] if like is None else like.notes,
    )


def case_given(path: Path, args: argparse.Namespace) -> Any:
    """The case in a file: a case, or a request trace, of which the options say how it becomes one.

    Raises:
        UsageError: it is neither, or a case comes with options of request traces.
    """
    from fdtrace.request_traces.recognise import format_of, recognised_format
    from fdtrace.request_traces.trace_case import case_of_trace
    from fdtrace.workload_file import read_case

    given = given_options(args)
    known = format_of(path, args.format) if args.format else recognised_format(path)
    if known is not None:
        return case_of_trace(path, known, case_options(args))
    if given:
        raise UsageError(
            f"{path} is not recognised as a request trace",
            why=f"{given[0]} says how such a trace is read",
            hint="--format NAME if it is one, else leave it away",
        )
    return read_case(path)


def _like(args: argparse.Namespace) -> RecordingTemplate | None:
    from fdtrace.request_traces.like_recording import RecordingTemplate

    if args.like is None:
        return None
    return RecordingTemplate(
        args.like, args.seed or 0, timed=args.step_ms is None, accepting=args.accept is None
    )


def _acceptances(
    args: argparse.Namespace, like: RecordingTemplate | None, sizes: dict[str, Any]
) -> Acceptances | None:
    from fdtrace.request_traces.acceptances import acceptances_at

    if args.accept is None:
        if args.drafts is not None:
            raise UsageError(
                "--drafts without --accept", why="nothing says how many are accepted", hint="--accept 0.7"
            )
        return None if like is None else like.acceptances
    drafts = args.drafts if args.drafts is not None else sizes.get("num_speculative_tokens") or 3
    return acceptances_at(args.accept, drafts, args.seed or 0)


def _assigned(text: str, option: str, names: tuple[str, ...] | None) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not value or (names is not None and name not in names):
        hint = f"{option} " + (f"{' | '.join(names)}=NAME" if names else "max_num_seqs=64")
        raise UsageError(f"{option} {text!r} assigns nothing that is read", hint=hint)
    return name.strip(), value.strip()


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _tokenizer_length(path: Path) -> tuple[TextLength, str]:
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise UsageError(
            "--tokenizer needs the package tokenizers",
            why="this Python has none",
            hint="pip install tokenizers",
        ) from None
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:
        raise UsageError(
            f"{path} is no tokenizer", why=str(error), hint="a tokenizer.json of Hugging Face"
        ) from None
    return lambda text: len(tokenizer.encode(text).ids), f"lengths of texts are tokens of {path.name}"
