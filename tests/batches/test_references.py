"""Pictures are taken in once, whole or not at all, and stay while something is made from them."""

import io
from datetime import timedelta
from functools import partial
from hashlib import sha256

import PIL.Image
import pytest
from django.core.files.storage import default_storage
from django.db import transaction
from django.db.models.functions import Now

from batches import cleanup, lifecycle, references
from batches.models import Discarded, Generation, GenerationReference, Reference
from batches.references import Busy, Collected, Source, Upload
from tests.factories import (
    make_generation,
    make_image,
    make_reference,
    make_user,
    new_generation,
    picture,
)
from tests.support import in_background, wait_for_locks

pytestmark = pytest.mark.django_db


@pytest.fixture
def owner():
    return make_user()


@pytest.fixture
def files(media):
    return lambda: {path for path in media.rglob("*") if path.is_file()}


def uploaded(data=None):
    data = data or picture()
    return Upload(io.BytesIO(data), size_bytes=len(data), sha256=sha256(data).hexdigest())


def bytes_of(reference):
    with default_storage.open(reference.file.name) as file:
        return file.read()


def taken_in(owner, *wanted):
    return references.collect(references.look_up(owner.pk, wanted))


def add(collected):
    assert isinstance(collected, Collected)
    with collected.added() as added:
        return added


def test_what_is_not_added_is_gone(owner, files, django_capture_on_commit_callbacks):
    with django_capture_on_commit_callbacks(execute=True), taken_in(owner, uploaded()):
        assert len(files()) == 2
        assert not Reference.objects.exists()
    assert files() == set()


def test_what_is_added_and_undone_is_gone(owner, files, django_capture_on_commit_callbacks):
    def fail():
        with (
            taken_in(owner, uploaded()) as collected,
            transaction.atomic(),
            collected.added() as added,
        ):
            assert all(one.is_new for one in added.values())
            raise ZeroDivisionError

    with django_capture_on_commit_callbacks(execute=True), pytest.raises(ZeroDivisionError):
        fail()
    assert not Reference.objects.exists()
    assert files() == set()


def test_what_a_process_that_died_has_left_goes_in_the_end(owner, files, monkeypatch):
    monkeypatch.setattr(references, "_give_up", lambda rows: None)  # nobody is there to do it
    with taken_in(owner, uploaded()):
        pass
    assert cleanup.clean_due(10) == 0
    assert len(files()) == 2
    Discarded.objects.update(due_at=Now())
    assert cleanup.clean_due(10) == 1
    assert files() == set()
    assert not Discarded.objects.exists()


def test_files_that_are_about_to_be_cleaned_are_not_made_use_of(
    owner, files, django_capture_on_commit_callbacks
):
    def add_late():
        with taken_in(owner, uploaded()) as collected:
            Discarded.objects.update(due_at=Now() + timedelta(seconds=30))
            add(collected)

    with django_capture_on_commit_callbacks(execute=True), pytest.raises(Busy):
        add_late()
    assert not Reference.objects.exists()
    assert files() == set()


def test_an_immediate_clean_leaves_what_was_added(owner, files):
    with taken_in(owner, uploaded()) as collected:
        (added,) = add(collected).values()
    cleanup.clean(f"{owner.pk}/references")
    assert len(files()) == 2
    assert bytes_of(added.reference) == picture()


def test_of_two_that_take_the_same_bytes_in_one_is_kept(
    owner, files, django_capture_on_commit_callbacks
):
    with (
        django_capture_on_commit_callbacks(execute=True),
        taken_in(owner, uploaded()) as first,
        taken_in(owner, uploaded()) as second,
    ):
        assert len(files()) == 4
        (one,), (other,) = add(first).values(), add(second).values()
    assert (one.is_new, other.is_new) == (True, False)
    assert one.reference == other.reference == Reference.objects.get()
    assert {path.parent.name for path in files()} == {str(one.reference.pk)}
    assert len(files()) == 2


def test_the_same_bytes_from_several_sources_are_kept_once(owner, files):
    image = make_image(make_generation(owner))
    before = files()
    wanted = [uploaded(), Source("image_id", str(image.pk)), uploaded()]
    with taken_in(owner, *wanted) as collected:
        added = add(collected)
    assert {one.reference for one in added.values()} == {Reference.objects.get()}
    assert len(files() - before) == 2


def test_what_is_known_is_not_checked_again(owner, monkeypatch):
    make_reference(owner)
    reference = Reference.objects.get()
    data = bytes_of(reference)
    monkeypatch.setattr(references.images, "verify", None)
    with taken_in(owner, uploaded(data)) as collected:
        (added,) = add(collected).values()
    assert added == (reference, False)


def test_only_the_first_that_cannot_be_used_is_looked_at(owner):
    good, bad = uploaded(), uploaded(b"hello")
    with taken_in(owner, good, bad) as refusals:
        assert list(refusals) == [bad]
        assert refusals[bad].code == "unsupported_format"
    assert not Discarded.objects.exists()


def test_no_pictures_take_no_queries_and_no_transaction(owner, django_assert_num_queries):
    with (
        django_assert_num_queries(0),
        taken_in(owner) as collected,
        collected.added() as added,
    ):
        assert added == {}


def test_the_shape_is_the_one_that_is_seen(owner):
    out = io.BytesIO()
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    PIL.Image.new("RGB", (30, 20)).save(out, "jpeg", exif=exif)
    with taken_in(owner, uploaded(out.getvalue())) as collected:
        (added,) = add(collected).values()
    assert (added.reference.width, added.reference.height) == (20, 30)


# --- Deletion -----------------------------------------------------------------------------------


def test_a_reference_that_is_gone_already_can_be_deleted(owner):
    reference = make_reference(owner)
    assert references.delete(reference)
    assert references.delete(reference)


def test_a_reference_stays_until_the_last_that_is_made_from_it_is_gone(owner):
    reference = make_reference(owner)
    rows = [make_generation(owner, references=(reference.pk,), kind="derive") for _ in range(2)]
    for generation in rows:
        assert not references.delete(reference)
        lifecycle.delete_generation(generation=generation)
    assert not Generation.objects.exists()
    assert references.delete(reference)
    assert not Reference.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_whoever_deletes_waits_for_whoever_is_about_to_use(owner):
    reference = make_reference(owner)
    wanted = Source("id", str(reference.pk))
    with taken_in(owner, wanted) as collected, collected.added() as added:
        deletion = in_background(lambda: references.delete(reference))
        wait_for_locks()
        new = new_generation(references=(added[wanted].reference.pk,), kind="derive")
        lifecycle.submit_generation(owner_id=owner.pk, generation=new)
    assert deletion.result(30) is False
    assert GenerationReference.objects.get().reference == reference


@pytest.mark.django_db(transaction=True)
def test_two_who_take_the_same_pictures_in_do_not_wait_for_each_other(owner):
    pictures = [picture(size=(number, 1)) for number in (1, 2)]

    def take_in(wanted):
        with taken_in(owner, *map(uploaded, wanted)) as collected:
            return {one.reference.pk for one in add(collected).values()}

    # Both come to their first picture, and go on at once: each would hold what the other needs.
    with transaction.atomic():
        for data in pictures:
            digest = sha256(data).hexdigest()
            fields = {"format": "png", "width": 1, "height": 1, "size_bytes": 1, "sha256": digest}
            Reference.objects.create(owner=owner, **fields)
        orders = (pictures, pictures[::-1])
        taking = [in_background(partial(take_in, order)) for order in orders]
        wait_for_locks(2)
        transaction.set_rollback(True)
    one, other = (answer.result(60) for answer in taking)
    assert one == other
    assert Reference.objects.count() == 2
