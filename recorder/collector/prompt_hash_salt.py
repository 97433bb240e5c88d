"""Salts the hashes of prompt blocks: they can be compared within one trace, but not with other traces."""

from __future__ import annotations

import hashlib


def salted(hashes: bytes, salt: bytes) -> list[int]:
    """Salted numbers of hashes of 8 bytes each. Equal hashes give equal numbers, but only with the same salt."""
    return [
        int.from_bytes(hashlib.blake2b(hashes[at : at + 8], digest_size=8, key=salt).digest(), "little")
        for at in range(0, len(hashes), 8)
    ]
