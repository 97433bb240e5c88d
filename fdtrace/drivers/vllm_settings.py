"""Changed settings of a vLLM package, checked by its own configuration classes; and the list of all settings.

`vllm_driver.py` imports it from its own directory. A recording holds values that vLLM derived when it started. If the
setting behind such a value changes, the value is derived again.
"""

from __future__ import annotations

import inspect
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fdtrace.drivers.driver_protocol import Message


CACHE = ("num_gpu_blocks_override", "block_size", "enable_prefix_caching")
SPECULATION = ("num_speculative_tokens",)
MODEL = ("max_model_len",)

NO_KNOBS = (
    *("runner_type", "is_multimodal_model", "max_num_encoder_input_tokens", "encoder_cache_size", "scheduler_cls"),
    *("disable_hybrid_kv_cache_manager", "disable_chunked_mm_input", "stream_interval", "prefill_schedule_interval"),
    *("max_num_queued_reqs", "max_num_queued_tokens", "is_encoder_decoder", "num_scheduler_steps", "preemption_mode"),
    *("multi_step_stream_outputs", "send_delta_data", "delay_factor", "num_lookahead_slots", "cuda_graph_sizes"),
    *("chunked_prefill_enabled", "max_num_partial_prefills", "max_long_partial_prefills", "DEFAULT_MAX_NUM_SEQS"),
    *("DEFAULT_MAX_NUM_BATCHED_TOKENS", "DEFAULT_MAX_NUM_BATCHED_TOKENS_FOR_BATCHED_DP"),
)  # fmt: skip
"""Fields of `SchedulerConfig` on which no decision of the V1 scheduler about text depends, or that act elsewhere."""

DERIVED_FROM = {
    "max_num_batched_tokens": ("max_num_scheduled_tokens",),
    "max_num_scheduled_tokens": ("max_num_scheduled_tokens",),
    "max_num_seqs": ("max_num_scheduled_tokens",),
    "num_speculative_tokens": (
        *("max_num_scheduled_tokens", "num_spec_tokens", "num_lookahead_tokens", "num_prefill_lookahead"),
    ),
    "scheduler_reserve_full_isl": ("scheduler_reserve_full_isl",),
    "block_size": ("block_size", "hash_block_size"),
}
"""Setting -> values that `Scheduler` derives from it: if it changes, recorded ones are dropped and derived again."""


class RefusedSetting(Exception):
    """vLLM, or a replay of it, refuses a setting."""


def fields_of(cls: Any) -> dict[str, Any]:
    """The fields of a configuration class."""
    return dict(getattr(cls, "__dataclass_fields__", {}))


def with_changes(sizes: Message, recorded: Message, changed: Message) -> Message:
    """The recorded values by configuration, with the changed settings in them, unchecked. Raises `RefusedSetting`."""
    from vllm import config as vllm

    if not changed:
        return recorded
    settings = {name: dict(part) if isinstance(part, dict) else part for name, part in recorded.items()}
    scheduler_fields = fields_of(vllm.SchedulerConfig)
    scheduler, cache = settings.setdefault("scheduler_config", {}), settings.setdefault("cache_config", {})
    for name, value in changed.items():
        if name in scheduler_fields and name not in NO_KNOBS:
            scheduler[name] = value
        elif name in CACHE:
            cache[name] = value
        elif name not in (*SPECULATION, *MODEL):
            raise RefusedSetting(_unknown(name, scheduler_fields))
        for derived in DERIVED_FROM.get(name, ()):
            settings.get("scheduler", {}).pop(derived, None)
    if {"max_num_batched_tokens", "num_speculative_tokens", "max_num_seqs"} & changed.keys():
        if "max_num_scheduled_tokens" not in changed:
            scheduler["max_num_scheduled_tokens"] = None
        for name in ("max_num_encoder_input_tokens", "encoder_cache_size"):
            scheduler.pop(name, None)
    if "num_speculative_tokens" in changed:
        drafts = sizes["num_speculative_tokens"] if sizes["spec_method"] is not None else 0
        speculation = dict(settings.get("speculative_config") or {})
        settings["speculative_config"] = {**speculation, "num_speculative_tokens": drafts} if drafts else None
    if "block_size" in changed:
        settings["kv_cache_config"] = _with_block_size(
            settings.get("kv_cache_config") or {}, sizes["block_size"]
        )
    if {"num_gpu_blocks_override", "block_size", "max_model_len"} & changed.keys():
        _refuse_few_blocks(sizes)
    return settings


def _unknown(setting: str, scheduler_fields: Message) -> str:
    names = [name for name in (*scheduler_fields, *CACHE, *SPECULATION, *MODEL) if name not in NO_KNOBS]
    near = get_close_matches(setting, names, 1)
    return f"this vLLM has no setting {setting!r} that its scheduling depends on" + (
        f": {near[0]}?" if near else ""
    )


def _with_block_size(kv: Message, size: int) -> Message:
    groups = kv.get("groups") or []
    sizes = {group["spec"].get("block_size") for group in groups}
    if len(sizes) > 1:
        raise RefusedSetting(
            f"the layers of this model have blocks of several sizes ({sorted(map(str, sizes))})"
        )
    changed = [{**group, "spec": {**group["spec"], "block_size": size}} for group in groups]
    return {**kv, "groups": changed}


def _refuse_few_blocks(sizes: Message) -> None:
    """As `get_kv_cache_configs` (v1/core/kv_cache_utils.py) does when a server starts."""
    needed = 1 + -(-sizes["max_model_len"] // sizes["block_size"])
    if sizes["num_blocks"] < needed:
        raise RefusedSetting(
            f"{sizes['num_blocks']} KV blocks of {sizes['block_size']} tokens do not hold one request of max_model_len "
            f"{sizes['max_model_len']}: a server starts with {needed} or more"
        )


def check_scheduler(vllm: Any, sizes: Message, section: Message) -> None:
    """Have vLLM's own `SchedulerConfig` check a changed section. `RefusedSetting` in its words."""
    parameters = inspect.signature(vllm.SchedulerConfig).parameters
    arguments = {
        name: value
        for name, value in section.items()
        if name in parameters and name not in ("scheduler_cls",)
    }
    arguments.update(
        max_num_batched_tokens=sizes["max_num_batched_tokens"],
        max_num_seqs=sizes["max_num_seqs"],
        enable_chunked_prefill=sizes["chunked_prefill"],
    )
    for name, value in (("max_model_len", sizes["max_model_len"]), ("is_encoder_decoder", False)):
        if name in parameters:
            arguments[name] = value
    try:
        vllm.SchedulerConfig(**arguments)
    except Exception as error:
        raise RefusedSetting(message_of(error)) from None


def message_of(error: Exception) -> str:
    """The message of a configuration's check, without the input and the address that pydantic adds."""
    texts = []
    for line in str(error).splitlines()[1:] or [str(error)]:
        text = line.strip()
        if not text or text.startswith("For further information"):
            continue
        texts.append(text.split(" [type=")[0].replace("Value error, ", ""))
    names = [text for text in texts if " " not in text]
    words = [text for text in texts if " " in text]
    return ": ".join([", ".join(names), "; ".join(words)]) if names else "; ".join(words)


def derive_again(config: Any, changed: Message) -> None:
    """Fill in again what vLLM's `VllmConfig` derives when it starts, if it depends on a changed setting."""
    derive = getattr(config, "_set_max_num_scheduled_tokens", None)
    if (
        derive is None
        or not {"max_num_batched_tokens", "num_speculative_tokens", "max_num_seqs"} & changed.keys()
    ):
        return
    try:
        derive()
    except Exception as error:
        raise RefusedSetting(message_of(error)) from None


# The list ---------------------------------------------------------------------------------------------------


class KnobList:
    """Answers with the settings on which the scheduling of this vLLM depends."""

    def __init__(self, recorded: Message) -> None:
        self.recorded = recorded

    def close(self) -> None:
        """Nothing outside the process is held."""

    def answer(self, message: Message) -> Message:
        """The settings: name, kind, range, default, recorded value, and text of each."""
        from vllm import config as vllm

        parts = [
            ("scheduler_config", vllm.SchedulerConfig, None),
            ("cache_config", vllm.CacheConfig, CACHE),
            ("speculative_config", vllm.SpeculativeConfig, SPECULATION),
            ("model_config", vllm.ModelConfig, MODEL),
        ]
        return {"knobs": [knob for part in parts for knob in self._of(*part)]}

    def _of(self, section: str, cls: Any, only: Any) -> list[Message]:
        values, texts = self.recorded.get(section) or {}, _texts(cls)
        knobs = []
        for name, schema in _schemas(cls).items():
            if name in NO_KNOBS if only is None else name not in only:
                continue
            kind, allowed = _kind(schema)
            text = " ".join(str(texts.get(name, "")).split())
            knobs.append(
                {
                    "name": name,
                    "kind": kind,
                    "range": allowed,
                    "default": _plain(schema.get("default")),
                    "recorded": values.get(name),
                    "text": text.split(". ")[0].rstrip("."),
                }
            )
        return knobs


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, (bool, int, float, str)) else None


def _schemas(cls: Any) -> dict[str, Message]:
    """The JSON schema of each field. If the class has none, only the name of its type."""
    try:
        from pydantic import TypeAdapter  # type: ignore[import-not-found]  # vLLM brings it

        properties: dict[str, Message] = TypeAdapter(cls).json_schema()["properties"]
        return properties
    except Exception:
        return {
            name: {"type": str(field.type).replace("typing.", "")} for name, field in fields_of(cls).items()
        }


def _texts(cls: Any) -> dict[str, str]:
    """What vLLM's own source says of each field."""
    try:
        from vllm.config import utils

        texts: dict[str, str] = utils.get_attr_docs(cls)
        return texts
    except Exception:
        return {}


_KINDS = {"integer": "whole number", "number": "number", "boolean": "true or false", "string": "text"}
_BOUNDS = (
    *(("minimum", "{} or more"), ("exclusiveMinimum", "more than {}")),
    *(("maximum", "{} at most"), ("exclusiveMaximum", "less than {}")),
)


def _kind(schema: Message) -> tuple[str, str]:
    """The kind and the range of a setting, in words."""
    choices = [choice for choice in schema.get("anyOf", [schema]) if choice.get("type") != "null"]
    null = ["null"] if len(choices) < len(schema.get("anyOf", [schema])) else []
    choice = choices[0] if choices else {}
    kind = _KINDS.get(str(choice.get("type")), str(choice.get("type", "text")))
    allowed = [text.format(choice[name]) for name, text in _BOUNDS if name in choice]
    if "enum" in choice:
        allowed = [" | ".join(map(str, choice["enum"]))]
    return kind, ", ".join([*allowed, *null])
