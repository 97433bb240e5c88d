"""An allocator that counts, in place of Paddle's."""

import os
from types import SimpleNamespace

RANK = int(os.environ.get("STANDIN_RANK", "0"))
calls = [0]


def _allocated() -> int:
    calls[0] += 1
    return 1000 * (RANK + 1) + calls[0]


device = SimpleNamespace(
    cuda=SimpleNamespace(
        memory_allocated=_allocated,
        memory_reserved=lambda: 5000 * (RANK + 1),
        max_memory_allocated=lambda: 6000 * (RANK + 1),
        max_memory_reserved=lambda: 7000 * (RANK + 1),
    )
)
