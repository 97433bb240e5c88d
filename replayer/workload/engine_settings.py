"""The settings of an engine that scheduling depends on, under the engine's own names; and a configuration with changed
settings.

FastDeploy's settings are listed here, each with its range and its effect; FastDeploy's own checks are in
`startup_checks.py`. Of vLLM's settings, only the sizes of a replay are listed here. The installed vLLM itself says
which other settings it has, and their ranges (`fdtrace/drivers/vllm_settings.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any, Literal

from fdtrace.recorder.errors import UsageError
from fdtrace.recorder.trace.recording import EngineInfo
from fdtrace.replayer.config import SchedulerConfig, is_modelled
from fdtrace.replayer.workload.case_variables import LARGEST, read_variables

Value = bool | int | float | str | None
"""The value of a setting."""
Settings = Mapping[str, Value]
"""Changed settings, by the engine's own names."""
SettingKind = Literal["whole number", "number", "true or false", "text"]


@dataclass(frozen=True)
class Knob:
    """A setting that scheduling depends on."""

    name: str
    kind: SettingKind
    range: str
    text: str
    field: str = ""
    """The field of `SchedulerConfig`; empty: it is an environment variable, or not a size of a replay."""
    least: int = 0


def _size(name: str, text: str, field: str = "", least: int = 1, more: str = "") -> Knob:
    return Knob(name, "whole number", f"{least} or more{more}", text, field or name, least)


def _variable(name: str, kind: SettingKind, text: str) -> Knob:
    ranges = {"whole number": "0 or more", "number": "0 or more", "true or false": "0 or 1"}
    return Knob(name, kind, ranges[kind], text)


_RESERVE = "OUTPUT_BLOCK_NUM_FOR_DECODE_WHEN_SCHEDULE_NEW_PREFILL"

_COMMON = (
    _size("max_num_batched_tokens", "tokens of a step, from which the budget of a call is made"),
    _size("max_num_seqs", "requests that run at once"),
    _size(
        "num_gpu_blocks_override", "KV blocks; the recorded number is what start-up left room for", "num_blocks"
    ),
    _size("block_size", "tokens of a KV block; the number of blocks must be given with it"),
    _size("max_model_len", "tokens of a request: longer prompts are rejected, outputs end there"),
    _size("num_speculative_tokens", "drafts of a decode (K); 0: no speculation", least=0),
    Knob("enable_chunked_prefill", "true or false", "true or false", "whether a prompt may be cut", "chunked_prefill"),
    Knob(
        "enable_prefix_caching",
        "true or false",
        "false, or as recorded",
        "whether equal prefixes share blocks",
        "prefix_caching",
    ),
)  # fmt: skip

FASTDEPLOY_KNOBS: Mapping[str, Knob] = {
    knob.name: knob
    for knob in (
        *_COMMON,
        _size(
            "prealloc_dec_block_slot_num_threshold",
            "a decode with at most so many free token slots gets new blocks",
            "prealloc_threshold",
            least=0,
        ),
        _variable("FD_ENC_DEC_BLOCK_NUM", "whole number", "blocks that a decode gets at once"),
        _variable("FD_DISABLE_CHUNKED_PREFILL", "true or false", "1: no prompt is cut"),
        _variable(f"FD_RESERVE_{_RESERVE}", "whole number", "blocks kept for each running decode at first"),
        _variable(f"FD_RESERVE_DECAY_{_RESERVE}", "number", "blocks by which that falls with each call"),
        _variable(f"FD_RESERVE_MIN_{_RESERVE}", "whole number", "and down to which it falls"),
        _variable("FD_USE_NEW_TOKEN_RATIO_RESERVE", "true or false", "release 2.6: reserve by the new-token ratio"),
        _variable("FD_INIT_NEW_TOKEN_RATIO", "number", "that ratio at first, and after a preemption"),
        _variable("FD_MIN_NEW_TOKEN_RATIO", "number", "and down to which it falls"),
        _variable("FD_NEW_TOKEN_RATIO_DECAY", "number", "by which it falls with each call"),
        _variable("FD_CLIP_MAX_NEW_TOKENS", "whole number", "the most tokens of a request that it counts"),
        _variable("FD_DETERMINISTIC_MODE", "true or false", "1: chunks end at multiples of the next"),
        _variable("FD_DETERMINISTIC_SPLIT_KV_SIZE", "whole number", "tokens, a power of 2"),
    )
}  # fmt: skip
"""The settings of FastDeploy that decide its scheduling, by name."""

VLLM_SIZES: Mapping[str, Knob] = {knob.name: knob for knob in _COMMON}
"""The settings of vLLM that a replay itself must know. vLLM's own `Scheduler` takes the others."""

ALIASES: Mapping[str, str] = {
    "num_blocks": "num_gpu_blocks_override",
    "chunked_prefill": "enable_chunked_prefill",
    "prefix_caching": "enable_prefix_caching",
    "prealloc_threshold": "prealloc_dec_block_slot_num_threshold",
    "K": "num_speculative_tokens",
}
"""Name of a setting in a trace or a report -> the engine's name."""

NOT_OF_A_SCHEDULER: Mapping[str, str] = {
    "gpu_memory_utilization": "it decides the number of KV blocks when the server starts: give num_gpu_blocks_override",
    "max_num_queued_reqs": "the API server refuses requests by it, and the scheduler never sees them",
    "max_num_queued_tokens": "the API server refuses requests by it, and the scheduler never sees them",
    "prefill_schedule_interval": "data-parallel ranks agree on it outside the scheduler",
    "stream_interval": "it delays what clients see, not what is scheduled",
    "scheduler_cls": "it is a class: --scheduler vllm=DIR runs another scheduler's code",
    "splitwise_role": "what the other instance of the deployment does was not recorded",
}
"""Settings that no replay can change, and why."""


def knobs_of(engine: EngineInfo) -> Mapping[str, Knob]:
    """The settings that this package knows of an engine, by name."""
    return FASTDEPLOY_KNOBS if is_modelled(engine) else VLLM_SIZES


def recorded_value(knob: Knob, engine: EngineInfo) -> Value:
    """The value of a recorded engine; None: it is not recorded."""
    config = SchedulerConfig.from_engine(engine)
    derived: dict[str, Value] = {
        "num_speculative_tokens": config.num_draft_tokens,
        "FD_DETERMINISTIC_MODE": int(config.split_kv_size > 0),
        "FD_DETERMINISTIC_SPLIT_KV_SIZE": config.split_kv_size or None,
        "FD_DISABLE_CHUNKED_PREFILL": int(not config.chunked_prefill),
        "FD_USE_NEW_TOKEN_RATIO_RESERVE": int(config.use_new_token_ratio),
    }
    if knob.name in derived:
        return derived[knob.name]
    value: Value = getattr(config, knob.field) if knob.field else config.env_value(knob.name)
    return value


def read_settings(engine: EngineInfo, changes: Mapping[str, Any]) -> dict[str, Value]:
    """Changed settings by the engine's own names, each with a value of its kind. Texts are read as on a command line.

    Raises:
        UsageError: the engine has no such setting, a value is not of its kind, or no replay can change a setting.
    """
    knobs, settings = knobs_of(engine), dict[str, Value]()
    for key, value in changes.items():
        name = ALIASES.get(key, key)
        if name in NOT_OF_A_SCHEDULER:
            raise UsageError(f"no replay can change {key}", why=NOT_OF_A_SCHEDULER[name])
        if name in settings:
            raise UsageError(f"{key} is given twice", why=f"its name is {name}" if name != key else "")
        knob = knobs.get(name)
        if knob is not None:
            settings[name] = _value(knob, value)
        elif is_modelled(engine):
            raise _unknown(key, engine, knobs)
        else:
            settings[name] = plain_value(value)
    return settings


def _unknown(key: str, engine: EngineInfo, knobs: Mapping[str, Knob]) -> UsageError:
    similar = get_close_matches(key, [*knobs, *ALIASES], 1)
    hint = f"{similar[0]}? " if similar else ""
    return UsageError(
        f"{engine.name} has no setting {key!r} that its scheduling depends on",
        hint=f"{hint}`fdtrace knobs TRACE` lists them",
    )


def plain_value(value: Any) -> Value:
    """A text as the value that it spells: true, false, null, a number, else itself."""
    if not isinstance(value, str):
        if value is None or isinstance(value, (bool, int, float)):
            return value
        raise UsageError(f"{value!r:.40} is no value of a setting", hint="a number, true, false, or a text")
    text = value.strip()
    words: dict[str, Value] = {"true": True, "false": False, "null": None, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    for convert in (int, float):
        try:
            number: Value = convert(text)
        except ValueError:
            continue
        return number
    return text


def _value(knob: Knob, setting: Any) -> Value:
    value = plain_value(setting)
    error = UsageError(f"{knob.name} must be a {knob.kind}, not {setting!r:.40}", hint=knob.range)
    if knob.kind == "true or false":
        if value not in (0, 1) or isinstance(value, float):
            raise UsageError(f"{knob.name} must be {knob.range}, not {setting!r:.40}")
        return bool(value) if knob.field else int(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise error
    if knob.kind == "whole number":
        if isinstance(value, float) or not knob.least <= value <= LARGEST:
            raise error
    elif not math.isfinite(value) or value < 0:
        raise error
    return value


def changed_config(config: SchedulerConfig, engine: EngineInfo, settings: Settings) -> SchedulerConfig:
    """The configuration of a recorded engine under changed settings, as `read_settings` gives them.

    Raises:
        UsageError: they contradict each other, or the recording does not say what would have happened.
    """
    knobs = knobs_of(engine)
    fields = {
        knobs[name].field: value for name, value in settings.items() if name in knobs and knobs[name].field
    }
    if "block_size" in fields and "num_blocks" not in fields and fields["block_size"] != config.block_size:
        size = int(fields["block_size"] or 1)
        raise UsageError(
            "block_size is changed, and the number of blocks is not",
            why=f"the recorded {config.num_blocks} are blocks of {config.block_size} tokens",
            hint=f"num_gpu_blocks_override={config.num_blocks * config.block_size // size} takes the same memory",
        )
    if fields.get("prefix_caching") and not config.prefix_caching:
        raise UsageError(
            "prefix caching cannot be turned on",
            why="it was off in this recording, so it is not recorded which prompts begin with the same tokens",
        )
    if "num_speculative_tokens" in fields:
        fields.update(_speculation(config, int(fields["num_speculative_tokens"] or 0)))
    variables = {name: value for name, value in settings.items() if name.startswith("FD_")}
    if variables:
        config = _with_variables(config, variables)
        if "FD_DISABLE_CHUNKED_PREFILL" in variables and "chunked_prefill" in fields:
            raise UsageError(
                "FD_DISABLE_CHUNKED_PREFILL and enable_chunked_prefill say the same", hint="give one"
            )
    return replace(config, **fields)  # type: ignore[arg-type]  # checked by `read_settings`


def _with_variables(config: SchedulerConfig, variables: Settings) -> SchedulerConfig:
    values = read_variables(variables)
    new = config.with_env({**config.env(), **values})
    if values.get("FD_DETERMINISTIC_MODE") == 0:
        new = replace(new, split_kv_size=0)
    if "FD_DETERMINISTIC_SPLIT_KV_SIZE" in values and not new.split_kv_size:
        raise UsageError(
            "FD_DETERMINISTIC_SPLIT_KV_SIZE alone changes nothing",
            why="chunks end at multiples of it in the deterministic mode only",
            hint="FD_DETERMINISTIC_MODE=1 too",
        )
    return new


def _speculation(config: SchedulerConfig, drafts: int) -> dict[str, Value]:
    """FastDeploy's `SpeculativeConfig` holds 1 even if no method is set. A prefill instance drafts one token."""
    if not drafts:
        return {"num_speculative_tokens": 1 if config.num_speculative_tokens else 0, "spec_method": None}
    if config.spec_method is None:
        raise UsageError(
            "speculation cannot be turned on",
            why="none was recorded, so it is not known which drafts would be accepted",
            hint="record once with any number of drafts: other numbers are then modelled from those acceptances",
        )
    prefills = config.role == "prefill" and config.spec_method == "mtp"
    return {"num_speculative_tokens": 1 if prefills else drafts}
