"""`Prefer: wait=N`: a client may wait for what becomes of what it has asked for.

A view answers at once, as always. A header, which never leaves the server, says that the answer
may be kept back for so long, and at which path there is a better one once the work has ended.

Source: RFC 7240, sections 2 and 4.3, read 2026-11-20
"""

import re

from drf_spectacular.utils import OpenApiParameter
from rest_framework.response import Response

from batches.forms import MAX_WAIT_S
from batches.models import BatchStatus

# `<seconds> <path>`; the last id in the path is that of the batch or generation.
WAIT_HEADER = "X-Picture-Wait"

_HEADER = re.compile(r'(?:[^"]|"(?:[^"\\]|\\.)*")*')
_PREFERENCE = re.compile(r'(?:[^,"]|"(?:[^"\\]|\\.)*")+')
_SECONDS = re.compile(r'"?([0-9]+)"?')

HEADERS = (
    OpenApiParameter(
        "Prefer",
        {"type": "string", "examples": ["wait=30"]},
        OpenApiParameter.HEADER,
        description="`wait=N`: keep the answer back until the work has ended, for N seconds at "
        f"most, and no more than {MAX_WAIT_S}. Then it is 200 with the result, else 202.",
    ),
    OpenApiParameter(
        "Preference-Applied",
        str,
        OpenApiParameter.HEADER,
        response=[200, 202],
        description="`wait=N`, the seconds that were taken for it.",
    ),
)


def preferred_wait_s(header: str | None) -> int:
    """Seconds that a client would wait; 0 when it does not say so, or not so that it counts."""
    if header is None or not _HEADER.fullmatch(header):
        return 0
    for preference in _PREFERENCE.findall(header):
        name, _, value = preference.partition(";")[0].partition("=")
        if name.strip().lower() == "wait":
            seconds = _SECONDS.fullmatch(value.strip())
            if not seconds:
                return 0
            # int() does not take any number of digits; three are more than may be waited for.
            return min(int(seconds[1].lstrip("0")[:3] or 0), MAX_WAIT_S)
    return 0


def keep_back(response: Response, *, wait_s: int, path: str) -> None:
    """Have the answer kept back until what stands at the path has ended.

    Of what is to start at a later time nothing is waited for.
    """
    if response.data.get("status") != BatchStatus.SCHEDULED:
        response[WAIT_HEADER] = f"{wait_s} {path}"
