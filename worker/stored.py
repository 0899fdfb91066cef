"""Stored files, for those to whom they are sent."""

from typing import BinaryIO, cast

from django.db.models.fields.files import FieldFile


def open_stored(file: FieldFile) -> BinaryIO:
    """A file, ready to be read. Raises OSError, whatever its storage raises."""
    try:
        opened = cast(BinaryIO, file.open("rb"))
        # A storage that is elsewhere fetches all of it now.
        opened.read(1)
        opened.seek(0)
    # They have no exception in common.
    except Exception as error:
        raise OSError(f"{file.name} cannot be read: {error}") from error
    return opened
