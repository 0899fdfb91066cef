"""Addresses of stored pictures that work without a token, for a while."""

import uuid

from django.core.signing import BadSignature, TimestampSigner

URL_LIFETIME_S = 300
_signer = TimestampSigner(salt="picture.image-file")


def signed_url(base_url: str, pk: uuid.UUID | str, part: str, *, collection: str = "images") -> str:
    """An address that works without a token for `URL_LIFETIME_S`.

    `part`: `file`, `thumbnail`, or of an image `preview`. `collection`: `images`, `references`.
    """
    path = f"{collection}/{pk}/{part}"
    signature = _signer.sign(path).removeprefix(f"{path}:")
    return f"{base_url}/api/v1/{path}/?signature={signature}"


def is_signed(signature: str, pk: uuid.UUID, part: str, *, collection: str) -> bool:
    """Whether a signature is of that address, and not too old."""
    try:
        _signer.unsign(f"{collection}/{pk}/{part}:{signature}", max_age=URL_LIFETIME_S)
    except BadSignature:
        return False
    return True
