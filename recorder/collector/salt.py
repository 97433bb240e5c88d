"""What tells prompts' blocks apart within one trace, and nowhere else."""

from __future__ import annotations

import hashlib


def salted(hashes: bytes, salt: bytes) -> list[int]:
    """Hashes of 8 bytes each as numbers that are equal where they are, and only in traces of the same salt."""
    return [
        int.from_bytes(hashlib.blake2b(hashes[at : at + 8], digest_size=8, key=salt).digest(), "little")
        for at in range(0, len(hashes), 8)
    ]
