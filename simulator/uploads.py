"""Input files uploaded by clients. Only what describes them is kept, not their bytes.

Source: Replicate HTTP API, read 2026-11-20.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass
from typing import Any

from aiohttp import BodyPartReader, web

from simulator.wire import json_response, new_id, problem, rfc3339

LARGEST_FILE_BYTES = 100_000_000
LONGEST_NAME_BYTES = 255
LIFETIME_S = 3600
KEPT_FILES = 10_000
CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Upload:
    """One uploaded file."""

    id: str
    name: str
    content_type: str
    size_bytes: int
    md5: str
    sha256: str
    metadata: dict[str, Any]
    created_wall_ns: int

    def as_json(self, base_url: str) -> dict[str, Any]:
        """Return the file object."""
        return {
            "id": self.id,
            "name": self.name,
            "content_type": self.content_type,
            "size": self.size_bytes,
            "etag": self.md5,
            "checksums": {"sha256": self.sha256, "md5": self.md5},
            "metadata": self.metadata,
            "created_at": rfc3339(self.created_wall_ns, 3),
            "expires_at": rfc3339(self.created_wall_ns + LIFETIME_S * 1_000_000_000, 3),
            "urls": {"get": f"{base_url}/v1/files/{self.id}"},
        }


class UploadError(Exception):
    """An upload that is refused; `response` says why."""

    def __init__(self, response: web.Response) -> None:
        super().__init__(response.text)
        self.response = response


class Uploads:
    """All uploaded files, the oldest forgotten first."""

    def __init__(self) -> None:
        self._files: dict[str, Upload] = {}

    async def receive(self, request: web.Request) -> Upload:
        """Read a multipart request and keep its file.

        Raises:
            UploadError: when the file is missing or too large or a field is malformed.
        """
        if not request.content_type.startswith("multipart/"):
            raise UploadError(problem(400, "The request must be multipart/form-data."))
        fields: dict[str, str] = {}
        content: dict[str, Any] | None = None
        async for part in await request.multipart():
            if not isinstance(part, BodyPartReader):
                continue
            if part.name == "content":
                content = await _read_content(part)
            elif part.name in ("filename", "type", "metadata"):
                fields[part.name] = await part.text()
        if content is None:
            raise UploadError(problem(422, "- content is required\n"))
        name = fields.get("filename") or content.pop("name")
        if len(name.encode()) > LONGEST_NAME_BYTES:
            raise UploadError(problem(422, f"- filename is over {LONGEST_NAME_BYTES} bytes\n"))
        upload = Upload(
            id=new_id(),
            name=name,
            content_type=fields.get("type") or content["content_type"],
            size_bytes=content["size_bytes"],
            md5=content["md5"],
            sha256=content["sha256"],
            metadata=_parse_metadata(fields.get("metadata", "{}")),
            created_wall_ns=time.time_ns(),
        )
        self._files[upload.id] = upload
        if len(self._files) > KEPT_FILES:
            del self._files[next(iter(self._files))]
        return upload

    def get(self, file_id: str) -> Upload | None:
        """Return the file, or None."""
        return self._files.get(file_id)

    def newest_first(self) -> list[Upload]:
        """Return all files."""
        return list(reversed(self._files.values()))

    def delete(self, file_id: str) -> bool:
        """Remove the file; return whether there was one."""
        return self._files.pop(file_id, None) is not None


async def _read_content(part: BodyPartReader) -> dict[str, Any]:
    size_bytes, md5, sha256 = 0, hashlib.md5(usedforsecurity=False), hashlib.sha256()
    while chunk := await part.read_chunk(CHUNK_BYTES):
        size_bytes += len(chunk)
        if size_bytes > LARGEST_FILE_BYTES:
            detail = {"detail": "Files must be less than 100MB in size"}
            raise UploadError(json_response(detail, 413))
        md5.update(chunk)
        sha256.update(chunk)
    return {
        "name": part.filename or "file",
        "content_type": part.headers.get("Content-Type", "application/octet-stream"),
        "size_bytes": size_bytes,
        "md5": md5.hexdigest(),
        "sha256": sha256.hexdigest(),
    }


def _parse_metadata(text: str) -> dict[str, Any]:
    try:
        metadata = json.loads(text)
    except ValueError:
        metadata = None
    if not isinstance(metadata, dict):
        raise UploadError(problem(422, "- metadata must be a JSON object\n"))
    return metadata
