"""The formats of request traces: how each names a request's time, lengths and blocks, in which units.

Mooncake: https://github.com/kvcache-ai/Mooncake (milliseconds, blocks of 512 tokens); AIPerf's and vLLM's timed traces
are the same, with more ways to give a prompt. Bailian: alibaba-edu/qwen-bailian-usagetraces-anon (seconds, blocks of
16). Azure: Azure/AzurePublicDataset, AzureLLMInferenceTrace. BurstGPT: HPMLL/BurstGPT (seconds). The loaders of vLLM,
AIPerf 0.13 and GuideLLM 0.8 say what else their users have.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from fdtrace.recorder.errors import UsageError
from fdtrace.request_traces.csv_rows import csv_rows
from fdtrace.request_traces.safe_json import json_elements, json_lines
from fdtrace.request_traces.trace_entry import TextLength, TraceEntry, TraceRequest

MILLISECOND, SECOND = 1.0, 1000.0


@dataclass
class ReadingOptions:
    """How a trace is read, and what was left out while it was."""

    text_length: TextLength
    text_length_name: str
    """How the lengths of texts are found, for a note."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """The name of a field in its format -> its name in the file."""
    hash_block_size: int | None = None
    """Tokens of a hashed block; None: the format's own."""
    unit_ms: float | None = None
    """Milliseconds of a unit of time; None: the format's own."""
    notes: Counter[str] = field(default_factory=Counter)
    """What was left out or not modelled -> how often."""

    def length(self, text: str) -> int:
        """Tokens of a text, 1 or more."""
        self.notes[self.text_length_name] += 1
        return max(1, self.text_length(text))


FormatReader = Callable[[Path, ReadingOptions], Iterator[TraceRequest]]


@dataclass(frozen=True)
class TraceFormat:
    """One format: its name, what it is, and the function that reads it."""

    name: str
    what: str
    read: FormatReader
    hash_block_size: int = 512


def _entries(path: Path, options: ReadingOptions) -> Iterator[TraceEntry]:
    for where, value in json_lines(path):
        yield TraceEntry(where, value, options.labels)


def _mooncake(path: Path, options: ReadingOptions) -> Iterator[TraceRequest]:
    return _hashed(path, options, 512, MILLISECOND)


def _bailian(path: Path, options: ReadingOptions) -> Iterator[TraceRequest]:
    return _hashed(path, options, 16, SECOND)


def _hashed(path: Path, options: ReadingOptions, size: int, unit_ms: float) -> Iterator[TraceRequest]:
    for entry in _entries(path, options):
        prompt = _prompt_length(entry, options)
        if entry.has("delay"):
            options.notes["a `delay` after the answer before it is not modelled"] += 1
        yield TraceRequest(
            entry.where,
            prompt,
            entry.whole("output_length", 1) if entry.has("output_length") else None,
            entry.milliseconds("timestamp", options.unit_ms or unit_ms) if entry.has("timestamp") else None,
            entry.hash_ids(prompt, options.hash_block_size or size),
        )


def _prompt_length(entry: TraceEntry, options: ReadingOptions) -> int:
    """AIPerf's four ways to give a prompt: its length, a text, messages, or a whole payload."""
    if entry.has("input_length"):
        return entry.whole("input_length", 1)
    if entry.has("text_input"):
        return options.length(entry.text("text_input"))
    if entry.has("messages"):
        return options.length(_text_of(entry))
    if entry.has("payload"):
        return options.length(_text_of(_inner(entry, "payload")))
    raise entry.refusal("input_length", "a request has a length, a text, messages or a payload", "add one")


def _inner(entry: TraceEntry, name: str) -> TraceEntry:
    value = entry.value(name)
    if not isinstance(value, Mapping):
        raise entry.refusal(name, "it must be an object", "correct it, or take this line out")
    return TraceEntry(f"{entry.where}, `{name}`", value)


def _text_of(entry: TraceEntry) -> str:
    """The text of OpenAI's `messages`, or of a completion's `prompt`."""
    if not entry.has("messages"):
        return entry.text("prompt")
    texts: list[str] = []
    for message in entry.objects("messages"):
        content = message.get("content")
        parts = content if isinstance(content, list) else [content]
        texts += [_text_of_part(part) for part in parts]
    return "\n".join(text for text in texts if text)


def _text_of_part(part: Any) -> str:
    text = part.get("text") if isinstance(part, Mapping) else part
    return text if isinstance(text, str) else ""


def _azure(path: Path, options: ReadingOptions) -> Iterator[TraceRequest]:
    for where, row in csv_rows(path):
        entry = TraceEntry(where, row, options.labels)
        output = entry.whole("GeneratedTokens")
        if not output:
            options.notes["requests without output (`GeneratedTokens` 0) are left out"] += 1
            continue
        time_ms = _moment_ms(entry, "TIMESTAMP")
        yield TraceRequest(where, entry.whole("ContextTokens", 1), output, time_ms)


_MOMENT = re.compile(r"(\d{4})-(\d\d)-(\d\d)[ T](\d\d):(\d\d):(\d\d)(?:\.(\d{1,9}))?(?:Z|[+-]00:?00)?\Z")


def _moment_ms(entry: TraceEntry, name: str) -> float:
    """A moment as `2023-11-16 18:15:46.6805900`, in milliseconds since 1970."""
    value = entry.value(name)
    match = _MOMENT.match(value.strip()) if isinstance(value, str) else None
    try:
        if match is None:
            raise ValueError
        moment = datetime(*(int(part) for part in match.groups()[:6]), tzinfo=timezone.utc)  # type: ignore[arg-type, misc]
    except ValueError:
        hint = "as 2023-11-16 18:15:46.6805900"
        raise entry.refusal(name, "it must be a moment (UTC)", hint) from None
    return moment.timestamp() * 1000 + int((match[7] or "0").ljust(9, "0")) / 1e6


def _burstgpt(path: Path, options: ReadingOptions) -> Iterator[TraceRequest]:
    for where, row in csv_rows(path):
        entry = TraceEntry(where, row, options.labels)
        output = entry.whole("Response tokens")
        if not output:
            options.notes["failed requests (`Response tokens` 0) are left out, as vLLM's loader does"] += 1
            continue
        time_ms = entry.milliseconds("Timestamp", options.unit_ms or SECOND)
        yield TraceRequest(where, entry.whole("Request tokens", 1), output, time_ms)


def _sharegpt(path: Path, options: ReadingOptions) -> Iterator[TraceRequest]:
    for where, value in json_elements(path, r"\s*\[", "element "):
        entry = TraceEntry(where, value, options.labels)
        turns = entry.objects("conversations")
        if len(turns) < 2:
            options.notes["conversations without an answer are left out, as vLLM's loader does"] += 1
            continue
        texts = [TraceEntry(f"{where}, turn {i}", turn).text("value") for i, turn in enumerate(turns[:2])]
        if len(turns) > 2:
            options.notes["turns after the first answer are left out, as vLLM's loader does"] += 1
        yield TraceRequest(where, options.length(texts[0]), options.length(texts[1]))


def _vllm(path: Path, options: ReadingOptions) -> Iterator[TraceRequest]:
    for entry in _entries(path, options):
        output = entry.whole("output_tokens", 1) if entry.has("output_tokens") else None
        yield TraceRequest(entry.where, options.length(entry.text("prompt")), output)


def _aiperf(path: Path, options: ReadingOptions) -> Iterator[TraceRequest]:
    """AIPerf's single_turn, random_pool and multi_turn."""
    for entry in _entries(path, options):
        turns = [entry]
        if entry.has("turns"):
            turns = [
                TraceEntry(f"{entry.where}, turn {i}", turn) for i, turn in enumerate(entry.objects("turns"))
            ]
            options.notes["turns of a session do not wait for the answers before them"] += len(turns) > 1
        for turn in turns:
            yield _turn(turn, options)


def _turn(turn: TraceEntry, options: ReadingOptions) -> TraceRequest:
    if turn.has("texts"):
        texts = turn.value("texts")
        if not isinstance(texts, list):
            raise turn.refusal("texts", "it must be a list of texts", "correct it, or take this line out")
        text = "\n".join(map(_text_of_part, texts))
    else:
        text = turn.text("text")
    if turn.has("delay"):
        options.notes["a `delay` after the answer before it is not modelled"] += 1
    return TraceRequest(
        turn.where,
        options.length(text),
        turn.whole("output_length", 1) if turn.has("output_length") else None,
        turn.milliseconds("timestamp", options.unit_ms or MILLISECOND) if turn.has("timestamp") else None,
    )


def _aiperf_inputs(path: Path, options: ReadingOptions) -> Iterator[TraceRequest]:
    for where, value in json_elements(path, r'\s*\{\s*"data"\s*:\s*\[', "data"):
        payloads = TraceEntry(where, value).objects("payloads")
        options.notes["turns of a session do not wait for the answers before them"] += len(payloads) > 1
        for i, payload in enumerate(payloads):
            entry = TraceEntry(f"{where}.payloads[{i}]", payload)
            limits = [name for name in ("max_completion_tokens", "max_tokens") if entry.has(name)]
            output = entry.whole(limits[0], 1) if limits else None
            yield TraceRequest(entry.where, options.length(_text_of(entry)), output)


_PROMPT_COUNTS = ("prompt_tokens_count", "input_tokens_count", "input_length")
_OUTPUT_COUNTS = ("output_tokens_count", "completion_tokens_count", "output_length")


def _guidellm(path: Path, options: ReadingOptions) -> Iterator[TraceRequest]:
    """GuideLLM's datasets and its minimal traces, as JSON lines or CSV."""
    rows = csv_rows(path) if _is_csv(path) else json_lines(path)
    for where, row in rows:
        entry = TraceEntry(where, row, options.labels)
        prompts = [name for name in _PROMPT_COUNTS if entry.has(name)]
        outputs = [name for name in _OUTPUT_COUNTS if entry.has(name)]
        yield TraceRequest(
            where,
            entry.whole(prompts[0], 1) if prompts else options.length(entry.text("prompt")),
            entry.whole(outputs[0], 1) if outputs else None,
            entry.milliseconds("timestamp", options.unit_ms or SECOND) if entry.has("timestamp") else None,
        )


def _is_csv(path: Path) -> bool:
    try:
        next(iter(json_lines(path)), None)
    except UsageError:
        return True
    return False


FORMATS = {
    known.name: known
    for known in (
        TraceFormat("mooncake", "Mooncake's JSON lines, AIPerf's and vLLM's timed traces too", _mooncake),
        TraceFormat("bailian", "Bailian's (Qwen) JSON lines", _bailian, 16),
        TraceFormat("azure", "Azure's LLM inference traces, CSV", _azure),
        TraceFormat("burstgpt", "BurstGPT's CSV", _burstgpt),
        TraceFormat("sharegpt", "ShareGPT's JSON list of conversations", _sharegpt),
        TraceFormat("vllm", "vLLM's custom dataset, JSON lines with `prompt`", _vllm),
        TraceFormat("aiperf", "AIPerf's single_turn, random_pool and multi_turn, JSON lines", _aiperf),
        TraceFormat("aiperf-inputs", "AIPerf's inputs.json", _aiperf_inputs),
        TraceFormat("guidellm", "GuideLLM's datasets and minimal traces, JSON lines or CSV", _guidellm),
    )
}
"""Name -> format."""
