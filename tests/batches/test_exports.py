"""What files are called in a ZIP, and the ZIP itself."""

import hashlib
import io
import itertools
import json
import tracemalloc
import uuid
import zipfile
from datetime import UTC, datetime
from pathlib import PurePosixPath, PureWindowsPath

import pytest
from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from hypothesis import given
from hypothesis import strategies as st

from batches import exports
from batches.exports import (
    DEFAULT_NAMES,
    NO_SEED,
    PLACEHOLDERS,
    StorageBroken,
    batch_images,
    begin_zip,
    found_images,
    read_names,
    zip_name,
)
from batches.gallery import ImageFilter
from batches.intake import Refused
from batches.models import Generation, Image
from tests.factories import make_batch, make_generation, make_image, make_user

VALUES = {
    "number": 1,
    "index": 3,
    "output": 0,
    "seed": 42,
    "width": 8,
    "height": 6,
    "batch": "Lighthouses",
    "batch_id": "b1",
    "generation_id": "g1",
    "id": "i1",
    "custom_id": "dawn",
    "name": "Dawn",
    "prompt": "A lighthouse at dawn",
    "style": "retro",
    "genre": "",
    "model": "black-forest-labs/flux-schnell",
    "format": "png",
    "date": "2026-11-20",
    "review_status": "approved",
}


def path(template, **values):
    return read_names(template).path({**VALUES, **values})


# --- Names --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (DEFAULT_NAMES, "Lighthouses/003-42.png"),
        ("{number:05}", "00001.png"),
        ("{batch}/{style}/{name}.{format}", "Lighthouses/retro/Dawn.png"),
        ("{model}", "black-forest-labs-flux-schnell.png"),
        ("{custom_id}.jpg", "dawn.jpg.png"),
        ("{custom_id}.PNG", "dawn.png"),
        ("{{{index}}}", "{3}.png"),
        ("{genre}", "_.png"),
        ("{date} {review_status}/{width}x{height}-{output}", "2026-11-20 approved/8x6-0.png"),
    ],
)
def test_a_name_is_made_of_its_placeholders_and_ends_as_its_format(template, expected):
    assert path(template) == expected


def test_every_placeholder_has_a_value():
    for name in PLACEHOLDERS:
        assert path(f"{{{name}}}").endswith(".png")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("../../etc/passwd", "-..-etc-passwd.png"),
        ("/etc/passwd", "-etc-passwd.png"),
        ("C:\\Windows", "C--Windows.png"),
        ("..", "_.png"),
        (".hidden", "hidden.png"),
        ("two\r\nlines\x00and\x1bmore", "two linesandmore.png"),
        ("\u202egnp.exe", "gnp.exe.png"),
        ("con", "_con.png"),
        ("Lpt1.txt", "_Lpt1.txt.png"),
        ("ends with a dot. ", "ends with a dot.png"),
        ("e\u0301", "\u00e9.png"),
        ("x" * 1_000, "x" * 60 + ".png"),
        ("", "_.png"),
    ],
)
def test_a_value_is_nothing_but_a_part_of_a_name(value, expected):
    assert path("{name}", name=value) == expected


def test_folders_and_names_that_only_come_about_together_are_safe_too():
    assert path("a/{genre}.{genre}./x") == "a/_/x.png"
    assert path("c{name}/x", name="on") == "_con/x.png"
    assert path("manifest.json/{index}") == "_manifest.json/3.png"


@given(st.text(max_size=200), st.text(max_size=200))
def test_whatever_the_values_are_the_path_is_relative_short_and_unpacks_where_it_should(one, two):
    made = path("{name}/{prompt}{name}{style}{custom_id}.{format}", name=one, prompt=two, style=one)
    folder, name = made.split("/")
    for part in (folder, name):
        assert part not in ("", ".", "..")
        assert len(part.encode()) < 200
        assert part.isprintable()
        assert not part.endswith((".", " "))
    assert not PureWindowsPath(made).is_reserved()
    assert not PureWindowsPath(made).drive
    assert not PurePosixPath(made).is_absolute()


@pytest.mark.parametrize(
    ("template", "code"),
    [
        ("{unknown}", "unknown_placeholder"),
        ("{}", "unknown_placeholder"),
        ("{0}", "unknown_placeholder"),
        ("{batch.name}", "unknown_placeholder"),
        ("{batch[0]}", "unknown_placeholder"),
        ("{index!r}", "invalid"),
        ("{index:>30}", "invalid"),
        ("{index:{width}}", "invalid"),
        ("{name:03}", "invalid"),
        ("{index", "invalid"),
        ("index}", "invalid"),
        ("", "invalid"),
        ("/{index}", "invalid"),
        ("{batch}//{index}", "invalid"),
        ("{batch}/", "invalid"),
        ("../{index}", "invalid"),
        ("./{index}", "invalid"),
        ("{batch}\\{index}", "invalid"),
        ("{index}\n", "invalid"),
        ("{index}\x00", "invalid"),
        ("a/" * 8 + "{index}", "too_deep"),
    ],
)
def test_a_template_that_makes_no_name_is_refused(template, code):
    with pytest.raises(Refused) as refused:
        read_names(template)
    (problem,) = refused.value.problems
    assert (problem.field, problem.code) == ("names", code)
    assert (problem.allowed == list(PLACEHOLDERS)) == (code == "unknown_placeholder")


@pytest.mark.parametrize(
    ("about", "name"), [("Fox: \u00fcber/all", "Fox- \u00fcber-all.zip"), ("..", "_.zip")]
)
def test_a_zip_is_called_after_what_it_is_about(about, name):
    assert zip_name(about) == name


def test_names_that_are_taken_are_not_given_again_whatever_their_case():
    taken = exports._Taken()
    ids = [uuid.UUID(int=number << 96) for number in range(3)]
    assert taken.one_like("a/x.png", ids[0]) == "a/x.png"
    assert taken.one_like("a/X.png", ids[1]) == "a/X-00000001.png"
    assert taken.one_like("a/x.png", ids[1]) == f"a/x-{ids[1]}.png"
    assert taken.one_like("a/x.webp", ids[2]) == "a/x.webp"


def test_hardly_any_of_many_names_is_taken_for_another():
    taken = exports._Taken()
    assert sum(not taken.take(f"batch/{number}.png") for number in range(20_000)) <= 1
    assert not any(taken.take(f"batch/{number}.png") for number in range(20_000))


# --- The ZIP ------------------------------------------------------------------------------------


def zip_of(pages, names=DEFAULT_NAMES):
    archive = zipfile.ZipFile(io.BytesIO(b"".join(begin_zip(pages, read_names(names)))))
    assert archive.testzip() is None
    return archive


def manifest_of(archive):
    return json.loads(archive.read("manifest.json"))


@pytest.fixture
def batch(db):
    batch = make_batch(make_user(), size=3, name="Lighthouses")
    for generation in batch.generations.all():
        make_image(generation)
    return batch


def test_a_zip_holds_each_file_as_it_is_stored_and_a_manifest_at_its_end(batch):
    archive = zip_of(batch_images(batch))
    assert archive.namelist() == [
        *(f"Lighthouses/{place:03}-7.png" for place in range(3)),
        "manifest.json",
    ]
    told = manifest_of(archive)
    assert (told["image_count"], told["missing_count"]) == (3, 0)
    assert datetime.fromisoformat(told["exported_at"]).tzinfo is not None
    for entry in told["images"]:
        assert hashlib.sha256(archive.read(entry["file"])).hexdigest() == entry["sha256"]
    assert all(info.compress_type == zipfile.ZIP_STORED for info in archive.infolist())


def test_the_manifest_tells_all_that_is_known_of_an_image(batch):
    Generation.objects.filter(batch=batch, index=0).update(
        negative_prompt="fog", style="retro", genre="poster", cost_usd="0.003", seed=None
    )
    image = Image.objects.get(generation__batch=batch, generation__index=0)
    Image.objects.filter(pk=image.pk).update(
        tags=["best"], is_saved=True, review_status="approved", reviewed_at=datetime.now(UTC)
    )
    image.refresh_from_db()
    generation = image.generation
    entry = manifest_of(zip_of(batch_images(batch)))["images"][0]
    assert datetime.fromisoformat(entry.pop("created_at")) == image.created_at
    assert entry == {
        "file": f"Lighthouses/000-{NO_SEED}.png",
        "problem": None,
        "id": str(image.pk),
        "generation_id": str(generation.pk),
        "batch_id": str(batch.pk),
        "batch_name": "Lighthouses",
        "index": 0,
        "output": 0,
        "name": "",
        "custom_id": "",
        "prompt": "picture 0",
        "final_prompt": "a lighthouse",
        "negative_prompt": "fog",
        "seed": None,
        "model": generation.model,
        "style": "retro",
        "genre": "poster",
        "cost_usd": "0.003000",
        "width": 8,
        "height": 6,
        "made_width": None,
        "made_height": None,
        "format": "png",
        "size_bytes": image.size_bytes,
        "sha256": image.sha256,
        "review_status": "approved",
        "is_saved": True,
        "tags": ["best"],
    }


def test_equal_names_are_told_apart_by_the_images_id(batch):
    archive = zip_of(batch_images(batch), "{batch}")
    first, *others = manifest_of(archive)["images"]
    assert first["file"] == "Lighthouses.png"
    assert [one["file"] for one in others] == [f"Lighthouses-{one['id'][:8]}.png" for one in others]


@pytest.mark.django_db
def test_a_single_image_of_a_batch_without_a_name_has_names_too():
    owner = make_user()
    make_image(make_generation(owner))
    nameless = make_batch(owner, size=1)
    make_image(nameless.generations.get())
    names = zip_of(found_images(owner.pk, ImageFilter(), newest_first=True)).namelist()
    assert names == [f"{nameless.pk}/000-7.png", "single/000-7.png", "manifest.json"]


@pytest.mark.django_db
@pytest.mark.parametrize("rows", [1, 2, 3, 100])
def test_rows_are_read_by_pages_in_order_each_once(rows, monkeypatch):
    monkeypatch.setattr(exports, "PAGE_ROWS", rows)
    owner = make_user()
    # All rows of a batch are made at one moment.
    batch = make_batch(owner, size=7)
    made = [make_image(generation) for generation in batch.generations.order_by("index")]
    Image.objects.filter(pk__in=[one.pk for one in made[:4]]).update(created_at=made[0].created_at)
    places = [row["place"] for page in batch_images(batch) for row in page]
    assert places == list(range(7))
    ordered = list(Image.objects.order_by("created_at", "id").values_list("pk", flat=True))
    for newest_first in (True, False):
        pages = found_images(owner.pk, ImageFilter(), newest_first=newest_first)
        found = [row["id"] for page in pages for row in page]
        assert found == (ordered[::-1] if newest_first else ordered)


def test_a_page_is_one_query(batch, django_assert_num_queries, monkeypatch):
    monkeypatch.setattr(exports, "PAGE_ROWS", 2)
    with django_assert_num_queries(3):
        assert [len(page) for page in batch_images(batch)] == [2, 1]
    with django_assert_num_queries(3):
        zip_of(found_images(batch.owner_id, ImageFilter(), newest_first=True))


def test_without_images_there_is_no_zip(db):
    with pytest.raises(Refused) as refused:
        begin_zip(batch_images(make_batch()), read_names(DEFAULT_NAMES))
    assert [(one.field, one.code) for one in refused.value.problems] == [("images", "no_images")]


def test_a_file_that_is_missing_is_left_out_and_the_zip_stays_whole(batch):
    image = Image.objects.get(generation__batch=batch, generation__index=0)
    default_storage.delete(image.file.name)
    archive = zip_of(batch_images(batch))
    told = manifest_of(archive)
    assert [(one["file"] is None, one["problem"]) for one in told["images"]] == [
        (True, "missing"),
        (False, None),
        (False, None),
    ]
    assert told["missing_count"] == 1
    assert len(archive.namelist()) == 3


def test_files_are_numbered_without_those_that_are_left_out(batch):
    first, *others = Image.objects.order_by("generation__index")
    default_storage.delete(first.file.name)
    archive = zip_of(batch_images(batch), "{number:02}")
    expected = [f"{number:02}.png" for number in range(1, len(others) + 1)]
    assert expected
    assert [one["file"] for one in manifest_of(archive)["images"]] == [None, *expected]


def test_a_zip_of_which_all_files_are_missing_says_so(batch):
    for image in Image.objects.all():
        default_storage.delete(image.file.name)
    archive = zip_of(batch_images(batch))
    assert archive.namelist() == ["manifest.json"]
    assert manifest_of(archive)["missing_count"] == 3


def test_a_file_of_another_size_is_left_out_as_damaged(batch):
    image = Image.objects.get(generation__batch=batch, generation__index=1)
    default_storage.save(image.file.name, ContentFile(b"half of it"))
    told = manifest_of(zip_of(batch_images(batch)))
    assert [one["problem"] for one in told["images"]] == [None, "damaged", None]


class Broken:
    """A storage of which a file cannot be opened, or read, or ends early, after so many others."""

    def __init__(self, at, after=0):
        self.at, self.left = at, after

    def open(self, name):
        self.left -= 1
        if self.left >= 0:
            return default_storage.open(name)
        if self.at == "open":
            raise PermissionError("denied")
        broken = {"read": BrokenFile, "short": BytesIO}[self.at]()
        broken.size = default_storage.size(name)
        return broken


class BytesIO(io.BytesIO):
    size = 0


class BrokenFile(BytesIO):
    def read(self, size=-1):
        raise OSError("the disk is gone")


@pytest.mark.parametrize("at", ["open", "read", "short"])
def test_a_storage_that_fails_midway_ends_the_stream_before_it_is_a_zip(at, batch, monkeypatch):
    monkeypatch.setattr(exports, "default_storage", Broken(at, after=1))
    pieces = begin_zip(batch_images(batch), read_names(DEFAULT_NAMES))
    sent = io.BytesIO()
    with pytest.raises(StorageBroken):
        sent.writelines(pieces)
    assert sent.tell() > 0
    assert not zipfile.is_zipfile(sent)


def test_a_storage_that_fails_at_once_is_told_before_anything_is_sent(batch, monkeypatch):
    monkeypatch.setattr(exports, "default_storage", Broken("open"))
    with pytest.raises(StorageBroken):
        begin_zip(batch_images(batch), read_names(DEFAULT_NAMES))


def test_what_is_left_early_leaves_no_file_open(batch):
    # An open file that is forgotten is a warning, and thereby an error.
    pieces = begin_zip(batch_images(batch), read_names(DEFAULT_NAMES))
    next(pieces)
    next(pieces)
    pieces.close()


def rows_of(count, file):
    for number in range(count):
        yield {
            "id": uuid.UUID(int=number),
            "generation_id": uuid.UUID(int=number),
            "index": 0,
            "file": file,
            "created_at": datetime(2026, 11, 20, tzinfo=UTC),
            "size_bytes": 10,
            "prompt": "x" * 1_000,
            **dict.fromkeys(("width", "height", "seed", "place"), 1),
            **dict.fromkeys(("made_width", "made_height")),
            **dict.fromkeys(("custom_id", "name", "final_prompt", "negative_prompt"), ""),
            **dict.fromkeys(("made_by", "style", "genre", "sha256", "batch_name"), ""),
            **dict.fromkeys(("of_batch", "cost_usd", "is_saved", "tags", "review_status"), ""),
            "format": "png",
        }


def test_any_number_of_images_takes_the_same_memory():
    name = default_storage.save("one.png", ContentFile(b"0123456789"))

    def peak_bytes(count):
        rows = rows_of(count, name)
        pages = iter(lambda: list(itertools.islice(rows, 50)), [])
        tracemalloc.start()
        try:
            entries, before = 0, b""
            for piece in begin_zip(pages, NAMING):
                # One may lie across two pieces.
                entries += (before + piece).count(ENTRY)
                before = piece[-len(ENTRY) + 1 :]
            return tracemalloc.get_traced_memory()[1], entries
        finally:
            tracemalloc.stop()

    few, _ = peak_bytes(300)
    many, entries = peak_bytes(3_000)
    assert entries == 3_001  # and the manifest
    assert many < few + 200_000


NAMING = read_names("{id}")
# What the directory at a ZIP's end begins each of its entries with.
ENTRY = b"PK\x01\x02"
