"""S3, as Django's storage: private objects, bounded waits, nothing copied in memory.

Sources: Amazon S3 API Reference (PutObject, Signature Version 4, canned ACLs), boto3's "Clients"
guide on threads, read 2026-11-20
"""

import threading
from typing import Any

from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from django.core.files.base import File
from storages.backends.s3 import S3Storage

# A storage that hangs holds whoever waits for it for twice their sum at the most, and a moment
# in between. They are for each step on the wire, not for a file.
CONNECT_TIMEOUT_S = 5
READ_TIMEOUT_S = 15
ATTEMPTS = 2
SPOOL_BYTES = 4 * 1024 * 1024
SINGLE_PUT_BYTES = 5 * 1024**3  # S3's own limit, far above that of an output


class PrivateS3Storage(S3Storage):
    """Objects that only a signature opens. `addressing_style`: `path` or `virtual`.

    No ACL is sent: objects are private without one, and buckets that know no ACLs refuse it.
    A key that is written again is written over.
    """

    default_acl = None
    file_overwrite = True
    querystring_expire = 300  # seconds, where no other time is asked for
    max_memory_size = SPOOL_BYTES  # what is read goes to disk beyond it
    # One request for each file, sent from where it lies. Parts would be read into memory, and a
    # process that dies between them leaves them in the bucket, unlisted and paid for.
    transfer_config = TransferConfig(
        multipart_threshold=SINGLE_PUT_BYTES, num_download_attempts=ATTEMPTS, use_threads=False
    )

    _connecting = threading.Lock()

    def __init__(self, *, addressing_style: str, **options: Any) -> None:
        config = Config(
            signature_version="s3v4",
            s3={"addressing_style": addressing_style},
            connect_timeout=CONNECT_TIMEOUT_S,
            read_timeout=READ_TIMEOUT_S,
            retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
            # Not all that speak S3 take checksums behind the body. TLS has them, and we a digest.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        super().__init__(client_config=config, **options)
        self._shared: Any = None

    @property
    def connection(self) -> Any:
        """One for all threads, which clients allow: each would take 17 MB and 0.1 s otherwise."""
        with self._connecting:
            if self._shared is None:
                self._shared = super().connection
        return self._shared

    def _save(self, name: str, content: File) -> str:
        # A file that has no name counts as closed, thereby as one that cannot be sent twice, and
        # would be read into memory as a whole.
        content.name = content.name or name
        saved: str = super()._save(name, content)
        return saved
