"""Users' credentials at rest: sealed with Fernet (AES-128-CBC and HMAC-SHA256)."""

import base64
import hashlib
import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from django.conf import settings


@lru_cache(maxsize=4)
def _box(keys: tuple[str, ...], secret_key: str) -> MultiFernet:
    if not keys:
        derived = hashlib.scrypt(
            secret_key.encode(), salt=b"picture.credentials", n=2**14, r=8, p=1, dklen=32
        )
        keys = (base64.urlsafe_b64encode(derived).decode(),)
    return MultiFernet([Fernet(key) for key in keys])


def _ours() -> MultiFernet:
    return _box(tuple(settings.CREDENTIALS_KEYS), settings.SECRET_KEY)


def seal(credentials: Mapping[str, str]) -> str:
    return _ours().encrypt(json.dumps(dict(credentials)).encode()).decode()


def unseal(sealed: str) -> dict[str, Any] | None:
    """The credentials; `None` when they were sealed with a key that is not ours any more."""
    try:
        opened: dict[str, Any] = json.loads(_ours().decrypt(sealed.encode()))
    except InvalidToken:
        return None
    return opened
