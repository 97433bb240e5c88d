"""The sizes that the sandbox engine runs with; the names are those of the `engine` table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fdtrace.recorder.errors import UsageError


@dataclass(frozen=True)
class EngineConfig:
    """Scheduling sizes and the model's. Raises `UsageError` where they contradict each other."""

    max_num_batched_tokens: int = 256
    """The scheduler's own limit, tokens a step."""
    max_num_seqs: int = 16
    """Most sequences that run at once; the number of slots."""
    num_speculative_tokens: int = 4
    """Drafts a decode and step; the value is kept, though unused, where `spec_method` is None."""
    spec_method: str | None = "ngram"
    """`ngram`, or None: no speculation."""
    block_size: int = 16
    """Tokens a KV block."""
    num_blocks: int = 320
    """KV blocks in all."""
    max_model_len: int = 512
    """Most tokens of a sequence, prompt and output."""
    chunked_prefill: bool = True
    """Whether a prompt may be prefilled in chunks."""
    prefix_caching: bool = False
    """Always False: equal prefixes do not share blocks in this engine."""
    formula: str = "original"
    """The budget formula: a built-in name or an expression that `replayer` parses."""
    policy: str = "original"
    """The scheduler version whose other rules are followed."""
    env: Mapping[str, str] = field(default_factory=dict)
    """FastDeploy's scheduling variables (FD_…) that hold here, as `replayer.config` reads them."""
    seed: int = 0
    """Seeds the weights and the load."""
    num_layers: int = 2
    num_heads: int = 2
    head_dim: int = 32
    ffn_size: int = 384
    vocab_size: int = 64

    def __post_init__(self) -> None:
        for name in _POSITIVE:
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}", hint="give 1 or more")
        if self.spec_method not in (None, "ngram"):
            raise UsageError(f"unknown speculative method {self.spec_method!r}", hint="ngram or none")
        if self.spec_method and self.num_speculative_tokens < 1:
            raise UsageError(
                "speculation with no drafts", hint="num_speculative_tokens of 1 or more, or no method"
            )
        if self.head_dim % 2:
            raise UsageError(
                f"head_dim is {self.head_dim}", why="rotary positions turn pairs", hint="an even number"
            )
        if self.prefix_caching:
            raise UsageError("the sandbox engine caches no prefixes")
        if self.seed < 0:
            raise UsageError(f"seed is {self.seed}", hint="0 or more")
        self._check_fit()

    def _check_fit(self) -> None:
        """One sequence of full length must fit the KV cache, and unchunked prompts one step."""
        if self.num_blocks * self.block_size < self.max_model_len + self.num_drafts:
            raise UsageError(
                "the KV blocks do not hold one sequence of max_model_len",
                why=f"{self.num_blocks} x {self.block_size} < {self.max_model_len} + {self.num_drafts}",
                hint="more num_blocks or a smaller max_model_len",
            )
        if not self.chunked_prefill and self.max_num_batched_tokens < self.max_model_len:
            raise UsageError(
                "without chunked prefill a prompt must fit one step",
                why=f"{self.max_num_batched_tokens} < max_model_len {self.max_model_len}",
                hint="raise max_num_batched_tokens or lower max_model_len",
            )

    @property
    def num_drafts(self) -> int:
        """Drafts that a decode really verifies in a step: 0 without a method."""
        return self.num_speculative_tokens if self.spec_method else 0

    @property
    def max_profiled_tokens(self) -> int:
        """Tokens of the forward that is run at start-up, so what memory is known to suffice for."""
        return self.max_num_batched_tokens


_POSITIVE = (
    "max_num_batched_tokens",
    "max_num_seqs",
    "block_size",
    "num_blocks",
    "max_model_len",
    "num_layers",
    "num_heads",
    "head_dim",
    "ffn_size",
    "vocab_size",
)
