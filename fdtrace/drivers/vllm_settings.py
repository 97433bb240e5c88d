"""Changed settings of a vLLM package, checked by its own configuration classes, and the list of those that there are.

Imported by `vllm_driver.py` from beside it. A recording holds what vLLM derived when it started. If the setting that it
was derived from changes, it is derived again.
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
"""Fields of `SchedulerConfig` that no decision of the V1 scheduler on text follows from, or that decide elsewhere."""

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
"""Setting -> what a recorded `Scheduler` had derived from it, and what the changed one derives anew."""


class Refused(Exception):
    """A setting that vLLM, or a replay of it, refuses."""


def fields_of(cls: Any) -> dict[str, Any]:
    """The fields of a configuration class."""
    return dict(getattr(cls, "__dataclass_fields__", {}))


def with_changes(sizes: Message, recorded: Message, changed: Message) -> Message:
    """What was recorded, by configuration, as it is under changed settings, before vLLM checks it. `Refused`."""
    from vllm import config as vllm

    if not changed:
        return recorded
    found = {name: dict(part) if isinstance(part, dict) else part for name, part in recorded.items()}
    known = fields_of(vllm.SchedulerConfig)
    scheduler, cache = found.setdefault("scheduler_config", {}), found.setdefault("cache_config", {})
    for name, value in changed.items():
        if name in known and name not in NO_KNOBS:
            scheduler[name] = value
        elif name in CACHE:
            cache[name] = value
        elif name not in (*SPECULATION, *MODEL):
            raise Refused(_unknown(name, known))
        for derived in DERIVED_FROM.get(name, ()):
            found.get("scheduler", {}).pop(derived, None)
    if {"max_num_batched_tokens", "num_speculative_tokens", "max_num_seqs"} & changed.keys():
        if "max_num_scheduled_tokens" not in changed:
            scheduler["max_num_scheduled_tokens"] = None
        for name in ("max_num_encoder_input_tokens", "encoder_cache_size"):
            scheduler.pop(name, None)
    if "num_speculative_tokens" in changed:
        drafts = sizes["num_speculative_tokens"] if sizes["spec_method"] is not None else 0
        speculation = dict(found.get("speculative_config") or {})
        found["speculative_config"] = {**speculation, "num_speculative_tokens": drafts} if drafts else None
    if "block_size" in changed:
        found["kv_cache_config"] = _with_block_size(found.get("kv_cache_config") or {}, sizes["block_size"])
    if {"num_gpu_blocks_override", "block_size", "max_model_len"} & changed.keys():
        _refuse_few_blocks(sizes)
    return found


def _unknown(name: str, known: Message) -> str:
    names = [one for one in (*known, *CACHE, *SPECULATION, *MODEL) if one not in NO_KNOBS]
    near = get_close_matches(name, names, 1)
    return f"this vLLM has no setting {name!r} that its scheduling depends on" + (
        f": {near[0]}?" if near else ""
    )


def _with_block_size(kv: Message, size: int) -> Message:
    groups = kv.get("groups") or []
    sizes = {group["spec"].get("block_size") for group in groups}
    if len(sizes) > 1:
        raise Refused(f"the layers of this model have blocks of several sizes ({sorted(map(str, sizes))})")
    changed = [{**group, "spec": {**group["spec"], "block_size": size}} for group in groups]
    return {**kv, "groups": changed}


def _refuse_few_blocks(sizes: Message) -> None:
    """As `get_kv_cache_configs` (v1/core/kv_cache_utils.py) does when a server starts."""
    needed = 1 + -(-sizes["max_model_len"] // sizes["block_size"])
    if sizes["num_blocks"] < needed:
        raise Refused(
            f"{sizes['num_blocks']} KV blocks of {sizes['block_size']} tokens do not hold one request of max_model_len "
            f"{sizes['max_model_len']}: a server starts with {needed} or more"
        )


def check_scheduler(vllm: Any, sizes: Message, section: Message) -> None:
    """Have vLLM's own `SchedulerConfig` check a changed section. `Refused` in its words."""
    taken = inspect.signature(vllm.SchedulerConfig).parameters
    given = {
        name: value for name, value in section.items() if name in taken and name not in ("scheduler_cls",)
    }
    given.update(
        max_num_batched_tokens=sizes["max_num_batched_tokens"],
        max_num_seqs=sizes["max_num_seqs"],
        enable_chunked_prefill=sizes["chunked_prefill"],
    )
    for name, value in (("max_model_len", sizes["max_model_len"]), ("is_encoder_decoder", False)):
        if name in taken:
            given[name] = value
    try:
        vllm.SchedulerConfig(**given)
    except Exception as error:
        raise Refused(said(error)) from None


def said(error: Exception) -> str:
    """What a configuration's check says, without the input and the address that pydantic adds."""
    kept = []
    for line in str(error).splitlines()[1:] or [str(error)]:
        text = line.strip()
        if not text or text.startswith("For further information"):
            continue
        kept.append(text.split(" [type=")[0].replace("Value error, ", ""))
    names = [text for text in kept if " " not in text]
    words = [text for text in kept if " " in text]
    return ": ".join([", ".join(names), "; ".join(words)]) if names else "; ".join(words)


def derive_again(config: Any, changed: Message) -> None:
    """What vLLM's `VllmConfig` fills in when it starts, where it was derived from what changed."""
    again = getattr(config, "_set_max_num_scheduled_tokens", None)
    if (
        again is None
        or not {"max_num_batched_tokens", "num_speculative_tokens", "max_num_seqs"} & changed.keys()
    ):
        return
    try:
        again()
    except Exception as error:
        raise Refused(said(error)) from None


# The list ---------------------------------------------------------------------------------------------------


class KnobList:
    """Answers what settings this vLLM has that its scheduling depends on."""

    def __init__(self, recorded: Message) -> None:
        self.recorded = recorded

    def close(self) -> None:
        """Nothing is outside the process."""

    def answer(self, message: Message) -> Message:
        """A list of name, kind, range, default, what was recorded, and what it does."""
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
        found = []
        for name, schema in _schemas(cls).items():
            if name in NO_KNOBS if only is None else name not in only:
                continue
            kind, allowed = _kind(schema)
            text = " ".join(str(texts.get(name, "")).split())
            found.append(
                {
                    "name": name,
                    "kind": kind,
                    "range": allowed,
                    "default": _plain(schema.get("default")),
                    "recorded": values.get(name),
                    "text": text.split(". ")[0].rstrip("."),
                }
            )
        return found


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, (bool, int, float, str)) else None


def _schemas(cls: Any) -> dict[str, Message]:
    """The JSON schema of each field; where the class has none, the name of its type alone."""
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
    """Its kind and range, in words."""
    choices = [one for one in schema.get("anyOf", [schema]) if one.get("type") != "null"]
    nothing = ["null"] if len(choices) < len(schema.get("anyOf", [schema])) else []
    one = choices[0] if choices else {}
    kind = _KINDS.get(str(one.get("type")), str(one.get("type", "text")))
    allowed = [text.format(one[name]) for name, text in _BOUNDS if name in one]
    if "enum" in one:
        allowed = [" | ".join(map(str, one["enum"]))]
    return kind, ", ".join([*allowed, *nothing])
