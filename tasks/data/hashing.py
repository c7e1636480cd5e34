"""One hash for fingerprints of data and keys of the cache."""

import hashlib
from typing import Any


def content_hash(*parts: Any, length: int = 16) -> str:
    """Return the first hexadecimal digits of the SHA-256 of strings, bytes and contiguous arrays, one after the other.

    Examples:
        >>> content_hash("ab", b"c") == content_hash("abc")
        True
    """
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else part)
    return digest.hexdigest()[:length]
