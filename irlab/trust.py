"""Was a text made by this user on this machine? A signature under a key that stays in the user's cache.

A reproducer may name Python files to load. Running them unasked would let any IR file run code, so only reproducers
that this very user wrote may.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets

from .cache import default_directory


def signature(text: str) -> str:
    """The signature of `text`; empty where no key can be kept."""
    key = _key()
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest() if key else ""


def is_signed(text: str, given: str) -> bool:
    """Whether `given` is the signature that this user's key gives `text`."""
    return bool(given) and hmac.compare_digest(signature(text), given)


def _key() -> bytes:
    path = default_directory() / "signing.key"
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(secrets.token_bytes(32))
        return path.read_bytes()
    except OSError:
        return b""
