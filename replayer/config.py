"""What a scheduler is configured with, and the policy (scheduler version) that it follows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, Literal

from fdtrace.recorder.errors import UsageError
from fdtrace.recorder.trace.recording import EngineInfo

Role = Literal["mixed", "prefill", "decode"]

NOT_MODELLED = ("vllm", "transformers")
"""Engines that do not follow FastDeploy's rules: only their own scheduler can reschedule their recordings."""


def is_modelled(engine: EngineInfo) -> bool:
    """Whether this package's model of FastDeploy's scheduler may reschedule what this engine ran."""
    return engine.name not in NOT_MODELLED


_ENV_FIELDS: dict[str, tuple[str, type]] = {
    "FD_ENC_DEC_BLOCK_NUM": ("enc_dec_block_num", int),
    "FD_RESERVE_OUTPUT_BLOCK_NUM_FOR_DECODE_WHEN_SCHEDULE_NEW_PREFILL": ("reserve_blocks", int),
    "FD_RESERVE_DECAY_OUTPUT_BLOCK_NUM_FOR_DECODE_WHEN_SCHEDULE_NEW_PREFILL": ("reserve_decay", float),
    "FD_RESERVE_MIN_OUTPUT_BLOCK_NUM_FOR_DECODE_WHEN_SCHEDULE_NEW_PREFILL": ("reserve_min_blocks", int),
    "FD_INIT_NEW_TOKEN_RATIO": ("init_new_token_ratio", float),
    "FD_MIN_NEW_TOKEN_RATIO": ("min_new_token_ratio", float),
    "FD_NEW_TOKEN_RATIO_DECAY": ("new_token_ratio_decay", float),
    "FD_CLIP_MAX_NEW_TOKENS": ("clip_max_new_tokens", int),
}


_CONFIG_FIELDS = {
    "enc_dec_block_num": "enc_dec_block_num",
    "prealloc_threshold": "prealloc_dec_block_slot_num_threshold",
    "output_caching": "enable_output_caching",
    "keeps_aborted_slots": "keeps_aborted_slots",
}
"""Field -> its name in a recorded engine's `config`."""


@dataclass(frozen=True)
class SchedulerConfig:
    """Sizes and switches of one scheduler; the defaults are FastDeploy's (`config.py`, `envs.py`).

    `num_speculative_tokens` is what FastDeploy's `SpeculativeConfig` holds: 1 even if no method is set.
    What a decode really drafts is `num_draft_tokens`. Sizes in tokens, sequences and KV blocks of
    `block_size` tokens.
    """

    max_num_batched_tokens: int
    max_num_seqs: int
    num_blocks: int
    block_size: int = 64
    max_model_len: int = 32768
    num_speculative_tokens: int = 1
    spec_method: str | None = None
    chunked_prefill: bool = True
    prefix_caching: bool = False
    role: Role = "mixed"
    enc_dec_block_num: int = 2
    """Blocks that a decode gets at once."""
    prealloc_threshold: int = 12
    """A decode with at most so many free token slots gets new blocks: prealloc_dec_block_slot_num_threshold as
    FastDeploy gets it. `Policy.threshold` is the value in force.
    """
    reserve_blocks: int = 16
    reserve_decay: float = 0.025
    reserve_min_blocks: int = 0
    use_new_token_ratio: bool = True
    """Whether a policy that knows the new-token ratio reserves by it (FD_USE_NEW_TOKEN_RATIO_RESERVE)."""
    init_new_token_ratio: float = 0.7
    min_new_token_ratio: float = 0.1
    new_token_ratio_decay: float = 0.001
    clip_max_new_tokens: int = 4096
    output_caching: bool = False
    """Whether, with prefix caching, the blocks of a request's output enter the cache when it ends
    (enable_output_caching).
    """
    keeps_aborted_slots: bool = False
    """Whether a request that ends while it is being aborted keeps its slot for ever: before commit 9ef8467d7
    FastDeploy's `ResourceManagerV1.finish_requests` leaves it in `to_be_aborted_req_id_set`.
    """
    split_kv_size: int = 0
    """Deterministic mode: chunks end at multiples of it (FD_DETERMINISTIC_SPLIT_KV_SIZE); 0: off."""
    num_draft_slots: int = 0
    """vLLM: tokens of a batch that each request pays for its drafter (`max_num_new_slots_for_drafting`)."""

    def __post_init__(self) -> None:
        for name in ("max_num_batched_tokens", "max_num_seqs", "num_blocks", "block_size", "max_model_len"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.num_speculative_tokens < 0:
            raise UsageError(f"num_speculative_tokens must not be negative: {self.num_speculative_tokens}")
        env_names = {attribute: name for name, (attribute, _) in _ENV_FIELDS.items()}
        for name in (*env_names, "prealloc_threshold", "split_kv_size"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise UsageError(f"{env_names.get(name, name)} must be 0 or more, not {value}")

    @cached_property
    def speculation(self) -> bool:
        """Whether a speculative method is set."""
        return self.spec_method is not None

    @cached_property
    def num_draft_tokens(self) -> int:
        """Drafts that a decode forward really verifies."""
        return self.num_speculative_tokens if self.spec_method is not None else 0

    def num_draft_tokens_of(self, *, first: bool) -> int:
        """Drafts that a decode's forward verifies: at most one in the first forward of a request on a decode instance,
        because the prefill instance drafted one (FastDeploy: `GPUModelRunner.insert_tasks_v1`).
        """
        return min(1, self.num_draft_tokens) if first else self.num_draft_tokens

    @cached_property
    def max_blocks_per_seq(self) -> int:
        """FastDeploy's max_block_num_per_seq: `FDConfig.postprocess` in config.py (rounded down)."""
        return self.max_model_len // self.block_size

    def with_env(self, env: Mapping[str, Any]) -> SchedulerConfig:
        """This configuration under FastDeploy's own variables, as its `envs.py` reads them."""
        changes: dict[str, Any] = {}
        for name, (attribute, convert) in _ENV_FIELDS.items():
            if name in env:
                changes[attribute] = _converted(name, env[name], convert)
        if "FD_DISABLE_CHUNKED_PREFILL" in env:
            changes["chunked_prefill"] = not _flag(env, "FD_DISABLE_CHUNKED_PREFILL")
        if "FD_USE_NEW_TOKEN_RATIO_RESERVE" in env:
            changes["use_new_token_ratio"] = _flag(env, "FD_USE_NEW_TOKEN_RATIO_RESERVE")
        if _flag(env, "FD_DETERMINISTIC_MODE"):
            name = "FD_DETERMINISTIC_SPLIT_KV_SIZE"
            changes["split_kv_size"] = _converted(name, env.get(name, 16), int)
        return replace(self, **changes)

    def env(self) -> dict[str, str]:
        """FastDeploy's variables for all fields that do not have their default: the inverse of `with_env`."""
        default = {field.name: field.default for field in fields(self)}
        variables = {
            name: str(getattr(self, attribute))
            for name, (attribute, _) in _ENV_FIELDS.items()
            if getattr(self, attribute) != default[attribute]
        }
        if not self.chunked_prefill:
            variables["FD_DISABLE_CHUNKED_PREFILL"] = "1"
        if not self.use_new_token_ratio:
            variables["FD_USE_NEW_TOKEN_RATIO_RESERVE"] = "0"
        if self.split_kv_size:
            variables["FD_DETERMINISTIC_MODE"] = "1"
            variables["FD_DETERMINISTIC_SPLIT_KV_SIZE"] = str(self.split_kv_size)
        return variables

    def env_value(self, name: str) -> int | float | None:
        """The value of one of FastDeploy's variables; None: no field belongs to it."""
        entry = _ENV_FIELDS.get(name)
        value: int | float | None = None if entry is None else getattr(self, entry[0])
        return value

    @classmethod
    def from_engine(cls, engine: EngineInfo) -> SchedulerConfig:
        """The configuration of a recorded engine."""
        config = cls(
            max_num_batched_tokens=engine.max_num_batched_tokens,
            max_num_seqs=engine.max_num_seqs,
            num_blocks=engine.num_blocks,
            block_size=engine.block_size,
            max_model_len=engine.max_model_len,
            num_speculative_tokens=engine.num_speculative_tokens,
            spec_method=engine.spec_method,
            prefix_caching=engine.prefix_caching,
            role=parse_role(engine.role),
        ).with_env(engine.env)
        config = replace(config, chunked_prefill=engine.chunked_prefill)
        recorded_values = {name: engine.config.get(key) for name, key in _CONFIG_FIELDS.items()}
        settings: dict[str, Any] = {
            name: value for name, value in recorded_values.items() if isinstance(value, int)
        }
        if "prealloc_threshold" in settings:
            settings["prealloc_threshold"] = _configured_threshold(
                settings["prealloc_threshold"], config, engine
            )
        slots = (engine.config.get("speculative_config") or {}).get("max_num_new_slots_for_drafting")
        if engine.name == "vllm" and isinstance(slots, int) and slots >= 0:
            settings["num_draft_slots"] = slots
        return replace(config, **settings)


def parse_role(text: str) -> Role:
    """The role of that name; UsageError if there is none."""
    for role in ("mixed", "prefill", "decode"):
        if text == role:
            return role
    raise UsageError(f"unknown role {text!r}", hint="one of mixed, prefill, decode")


def _converted(name: str, value: Any, convert: type) -> Any:
    try:
        return convert(value)
    except (TypeError, ValueError):
        raise UsageError(f"{name} must be {convert.__name__}, not {value!r}") from None


def _flag(env: Mapping[str, Any], name: str) -> bool:
    return bool(_converted(name, env.get(name, 0), int))


@dataclass(frozen=True)
class Policy:
    """A scheduler version: all differences between versions of FastDeploy's scheduler but the budget formula."""

    name: str
    description: str
    formula: str
    """Name of this version's built-in formula."""
    new_token_ratio: bool = False
    """Reserve blocks for running requests by a new-token ratio, not by a decaying number of blocks."""
    preempt_decodes_only: bool = False
    """Preempt the last running request that decodes, not simply the last one; prefills wait for blocks."""
    scale_prealloc_threshold: bool = False
    """Multiply the preallocation threshold by K + 1 if a speculative method is set."""
    clamp_new_blocks: bool = False
    """Count a negative number of new blocks as 0 before speculation's extra block is added."""
    spec_block_always: bool = False
    """Add speculation's extra block to the admission threshold even if nothing is reserved."""

    cache_once: bool = False
    """If a request computes a block again that the prefix cache gave, leave that block in the cache unchanged."""

    fetches_in_thread: bool = False
    """In a deployment: a separate thread fetches what clients sent. If not, each scheduling call begins with the fetch.
    """

    def threshold(self, config: SchedulerConfig) -> int:
        """Free token slots at which a decode gets new blocks.

        FastDeploy: `prealloc_dec_block_slot_num_threshold`; enlarged in `FDConfig.postprocess` (config.py) of
        release 2.6, at most to one token less than the blocks of an extension hold.
        """
        if not (self.scale_prealloc_threshold and config.speculation):
            return config.prealloc_threshold
        largest = max(0, config.block_size * config.enc_dec_block_num - 1)
        return min(config.prealloc_threshold * (config.num_speculative_tokens + 1), largest)


ORIGINAL = Policy(
    "original",
    "FastDeploy before release 2.6 (commits 72ce56b10 to 5582b5af1): blocks reserved by a decaying number, "
    "the last admitted request preempted first.",
    "original",
)
RELEASE_2_6 = Policy(
    "release_2_6",
    "FastDeploy release 2.6 (41677b9a6): blocks reserved by a decaying new-token ratio, only decodes "
    "preempted.",
    "pr7623",
    new_token_ratio=True,
    preempt_decodes_only=True,
    scale_prealloc_threshold=True,
    clamp_new_blocks=True,
    spec_block_always=True,
    cache_once=True,
    fetches_in_thread=True,
)
POLICIES: Mapping[str, Policy] = {policy.name: policy for policy in (ORIGINAL, RELEASE_2_6)}


RATIO_VARIABLES = {
    "FD_USE_NEW_TOKEN_RATIO_RESERVE", "FD_INIT_NEW_TOKEN_RATIO", "FD_MIN_NEW_TOKEN_RATIO",
    "FD_NEW_TOKEN_RATIO_DECAY", "FD_CLIP_MAX_NEW_TOKENS",
}  # fmt: skip
"""Variables that release 2.6 brought (FastDeploy's envs.py)."""


def parse_policy(name: str) -> Policy:
    """The policy of that name; UsageError names those that exist."""
    try:
        return POLICIES[name]
    except KeyError:
        raise UsageError(f"there is no policy {name!r}", hint=f"one of {', '.join(POLICIES)}") from None


def policy_of_engine(engine: EngineInfo) -> Policy:
    """The policy that a recorded engine names; without one, the policy of its version.

    A checkout has no version. Then its variables show release 2.6: if a user did not set them, fdtrace records only
    those that FastDeploy's envs.py has.
    """
    policy_name = engine.config.get("policy")
    if isinstance(policy_name, str) and policy_name in POLICIES:
        return POLICIES[policy_name]
    parts = engine.version.lstrip("v").split(".")
    number = tuple(int(part) for part in parts[:2] if part.isdigit())
    is_2_6 = number >= (2, 6) or (not number and engine.env.keys() >= RATIO_VARIABLES)
    return RELEASE_2_6 if engine.name == "fastdeploy" and is_2_6 else ORIGINAL


def _configured_threshold(recorded: int, config: SchedulerConfig, engine: EngineInfo) -> int:
    """The threshold that FastDeploy was configured with. A recording has the threshold in force.

    A release that enlarges the threshold replaces the configured one by the enlarged one. If the default explains the
    recorded value, the default is taken.
    """
    if recorded in (config.prealloc_threshold, RELEASE_2_6.threshold(config)):
        return config.prealloc_threshold
    enlarged = config.speculation and policy_of_engine(engine).scale_prealloc_threshold
    return recorded // (config.num_speculative_tokens + 1) if enlarged else recorded
