"""Files on the way in and on the way out: alike for every provider."""

from __future__ import annotations

import hashlib
import io
import os
from dataclasses import replace
from typing import Any, BinaryIO

import pytest
from PIL import Image

from generation.provider import ErrorClass, InputFile, PredictionStatus
from tests.generation.conformance.checks import (
    accepted,
    ended_with,
    fetched,
    find,
    is_image,
    refused,
)
from tests.generation.conformance.harness import Harness, OutputCase, input_file
from tests.generation.conformance.harnesses import every_output, those


def png(side_px: int = 16, *, seed: int = 0) -> bytes:
    """Return an image that cannot be compressed, of about three bytes a pixel."""
    noise = hashlib.shake_256(str(seed).encode()).digest(side_px * side_px * 3)
    file = io.BytesIO()
    Image.frombytes("RGB", (side_px, side_px), noise).save(file, "PNG")
    return file.getvalue()


class TestOutputs:
    @every_output
    def test_are_read_in_every_form(self, harness: Harness, case: OutputCase, prompt: str) -> None:
        request = case.apply(harness, harness.request(prompt), prompt)
        provider = harness.provider()
        submitted = accepted(provider.submit(request))
        ended = accepted(harness.ended(provider, submitted.id))
        if isinstance(case.expected, ErrorClass):
            ended_with(ended, case.expected)
            return
        assert ended.status == PredictionStatus.SUCCEEDED
        assert len(ended.outputs) == case.expected
        contents = [fetched(provider, ended, output) for output in ended.outputs]
        for content in contents:
            is_image(content)
        assert len(set(contents)) == case.expected


SIZES = {"small": [16], "300 kB": [330], "two": [16, 20], "two large": [250, 260]}


class TestReferenceImages:
    @pytest.mark.parametrize("sides_px", SIZES.values(), ids=SIZES)
    @those(lambda one: one.takes_files)
    def test_arrive_as_they_are_and_in_order(
        self, harness: Harness, prompt: str, sides_px: list[int]
    ) -> None:
        contents = [png(side_px, seed=number) for number, side_px in enumerate(sides_px)]
        files = [input_file(content, f'{n} ä".png') for n, content in enumerate(contents)]
        request = harness.with_files(harness.request(prompt), files)
        provider = harness.provider()
        submitted = accepted(provider.submit(request))
        assert harness.files_received(submitted.id) == [file.sha256 for file in files]
        assert harness.ended(provider, submitted.id).status == PredictionStatus.SUCCEEDED

    @those(lambda one: one.takes_files and one.can_find)
    def test_do_not_keep_it_from_being_found(self, harness: Harness, prompt: str) -> None:
        files = [input_file(png(330))]
        request = harness.with_files(harness.request(prompt), files)
        provider = harness.provider()
        submitted = accepted(provider.submit(request))
        found = find(provider, request)
        assert isinstance(found, tuple), found
        assert [one.id for one in found] == [submitted.id]

    @those(lambda one: one.takes_files and one.hands_over_files)
    def test_that_are_refused_leave_nothing_submitted(self, harness: Harness, prompt: str) -> None:
        harness.refuse_files()
        request = harness.with_files(harness.request(prompt), [input_file(png(330))])
        refused(harness.provider().submit(request), ErrorClass.PROVIDER_UNAVAILABLE)
        assert (harness.creates(prompt), harness.charges(prompt)) == (0, 0)

    @pytest.mark.parametrize("side_px", [16, 330], ids=["small", "300 kB"])
    @pytest.mark.parametrize("trouble", ["gone", "lost midway", "shorter", "longer"])
    @those(lambda one: one.takes_files)
    def test_that_cannot_be_read_leave_nothing_submitted(
        self, harness: Harness, prompt: str, trouble: str, side_px: int
    ) -> None:
        content = png(side_px)
        file = spoiled(input_file(content), content, trouble)
        request = harness.with_files(harness.request(prompt), [file])
        refused(harness.provider().submit(request), ErrorClass.INTERRUPTED)
        assert (harness.creates(prompt), harness.charges(prompt)) == (0, 0)


def spoiled(file: InputFile, content: bytes, trouble: str) -> InputFile:
    """Return the file as one that storage does not give as promised."""

    class Lost(io.BytesIO):
        def read(self, *args: Any) -> bytes:
            if self.tell():
                raise OSError("the storage is away")
            return super().read(min(len(content) // 2, 1_000))

    def gone() -> BinaryIO:
        raise FileNotFoundError("no such file")

    opened: dict[str, Any] = {
        "gone": gone,
        "lost midway": lambda: Lost(content),
        "shorter": lambda: io.BytesIO(content[:-1]),
        "longer": lambda: io.BytesIO(content + os.urandom(1)),
    }
    return replace(file, open=opened[trouble])
