"""Forms with one file, read no further than that may be long."""

import hashlib
from collections.abc import Mapping
from typing import IO, Any, cast

from django.conf import settings
from django.core.exceptions import SuspiciousOperation
from django.core.files.uploadhandler import FileUploadHandler
from django.http import QueryDict
from django.http.multipartparser import MultiPartParser, MultiPartParserError
from rest_framework.exceptions import ParseError
from rest_framework.parsers import BaseParser, DataAndFiles

from batches.intake import Problem, Refused
from batches.references import Upload, spool, too_large


class UploadParser(BaseParser):
    """A form with one file, called `file`, and nothing else; its data is an `Upload`.

    The file is spooled and hashed while it is read, and read no further than it may be long.
    Raises `Refused`, or ParseError for what is no form.
    """

    media_type = "multipart/form-data"

    def parse(
        self,
        stream: IO[bytes],
        media_type: str | None = None,
        parser_context: Mapping[str, Any] | None = None,
    ) -> DataAndFiles:
        assert parser_context is not None
        # Of the media type this one has the boundary.
        meta = {**parser_context["request"].META, "CONTENT_TYPE": media_type}
        handler = _UploadHandler()
        try:
            form = MultiPartParser(meta, cast(Any, stream), [handler], "utf-8")
            fields, files = form.parse()
            handler.finish(fields)
        except (MultiPartParserError, SuspiciousOperation) as error:
            handler.close()
            raise ParseError(f"The body is not a form: {error}", code="invalid_form") from None
        except Refused:
            handler.close()
            raise
        return DataAndFiles(fields, files)


class _UploadHandler(FileUploadHandler):
    """Spools the one file of a form."""

    def __init__(self) -> None:
        super().__init__()
        self._spool: Any = None
        self._digest = hashlib.sha256()
        self._size_bytes = 0
        self._is_complete = False

    def new_file(self, *args: Any, **kwargs: Any) -> None:
        super().new_file(*args, **kwargs)
        if self._spool is not None:
            raise Refused([Problem("file", "too_many", "There may be one file at a time.")])
        self._spool = spool()

    def receive_data_chunk(self, raw_data: bytes, start: int) -> None:
        self._size_bytes += len(raw_data)
        if self._size_bytes > settings.MAX_REFERENCE_BYTES:
            raise Refused([Problem("file", *too_large())])
        self._digest.update(raw_data)
        self._spool.write(raw_data)

    def file_complete(self, file_size: int) -> Any:
        self._is_complete = True
        self._spool.seek(0)
        return Upload(self._spool, size_bytes=self._size_bytes, sha256=self._digest.hexdigest())

    def finish(self, fields: QueryDict) -> None:
        """Check that the file was one, and ended."""
        if "file" in fields:
            raise Refused([Problem("file", "invalid", "Must be a file.")])
        if self._spool is not None and not self._is_complete:
            raise MultiPartParserError("it ends before its file does")

    def close(self) -> None:
        if self._spool is not None:
            self._spool.close()
