"""Files that no image needs go, and no others."""

from datetime import timedelta

import pytest
from django.core.files.base import ContentFile
from django.core.files.storage import FileSystemStorage, default_storage
from django.db import transaction
from django.db.models.functions import Now

from batches import cleanup, lifecycle
from batches.models import (
    Discarded,
    Generation,
    Image,
    Reference,
    image_folder,
    reference_folder,
)
from tests.factories import make_batch, make_generation, make_image, make_reference

pytestmark = pytest.mark.django_db


def write(generation, name="0.png"):
    return default_storage.save(f"{image_folder(generation)}/{name}", ContentFile(b"half"))


def make_due():
    Discarded.objects.update(due_at=Now() - timedelta(seconds=1))


def test_a_file_without_an_image_goes_and_an_images_own_files_stay():
    image = make_image()
    orphan = write(image.generation, "1.png")
    assert cleanup.clean(image_folder(image.generation))
    assert not default_storage.exists(orphan)
    assert default_storage.exists(image.file.name)
    assert default_storage.exists(image.thumbnail.name)


def test_whoever_is_writing_is_left_alone_until_later():
    generation = make_generation()
    name = write(generation)
    Generation.objects.update(status="downloading")
    assert not cleanup.clean(image_folder(generation))
    assert default_storage.exists(name)
    cleanup.discard(image_folder(generation))
    make_due()
    assert cleanup.clean_due(10) == 0
    assert Discarded.objects.get().due_at is not None
    Generation.objects.update(status="queued")
    make_due()
    assert cleanup.clean_due(10) == 1
    assert not default_storage.exists(name)
    assert not Discarded.objects.exists()


def test_a_folder_of_a_batch_that_is_no_more_goes_as_a_whole():
    batch = make_batch(size=2)
    names = [write(generation) for generation in batch.generations.all()]
    batch.generations.all().delete()
    assert cleanup.clean(f"{batch.owner_id}/{batch.pk}")
    assert not any(default_storage.exists(name) for name in names)


def test_a_folder_that_is_not_there_is_clean():
    assert cleanup.clean("1/single/none")


def test_what_is_undone_discards_nothing(django_capture_on_commit_callbacks):
    generation = make_generation()
    name = write(generation)
    with django_capture_on_commit_callbacks(execute=True), transaction.atomic():
        cleanup.discard(image_folder(generation))
        transaction.set_rollback(True)
    assert default_storage.exists(name)
    assert not Discarded.objects.exists()


def test_a_storage_that_fails_is_tried_again(monkeypatch):
    generation = make_generation()
    name = write(generation)
    cleanup.discard(image_folder(generation))
    make_due()

    def denied(*args):
        raise OSError(13, "Permission denied")

    with monkeypatch.context() as storage:
        storage.setattr(type(default_storage._wrapped), "delete", denied)
        assert cleanup.clean_due(10) == 0
    make_due()
    assert cleanup.clean_due(10) == 1
    assert not default_storage.exists(name)


def test_a_storage_that_fails_is_asked_once_and_one_folder_holds_no_other_up(monkeypatch):
    generations = [make_generation() for _ in range(3)]
    names = [write(generation) for generation in generations]
    cleanup.discard(*map(image_folder, generations))
    make_due()
    bad, asked = image_folder(generations[0]), []
    Discarded.objects.filter(folder=bad).update(due_at=Now() - timedelta(seconds=9))
    listdir = FileSystemStorage.listdir

    def denied(storage, path):
        asked.append(path)
        if path == bad:
            raise OSError(5, "Input/output error")
        return listdir(storage, path)

    monkeypatch.setattr(FileSystemStorage, "listdir", denied)
    assert cleanup.clean_due(10) == 0
    assert asked == [bad]
    assert not Discarded.objects.filter(due_at__lte=Now()).exists()
    Discarded.objects.exclude(folder=bad).update(due_at=Now() - timedelta(seconds=1))
    assert cleanup.clean_due(10) == 2
    assert [default_storage.exists(name) for name in names] == [True, False, False]
    assert Discarded.objects.get().folder == bad


def test_previews_are_needed_too():
    image = make_image()
    image.preview.save("0-preview.webp", ContentFile(b"preview"))
    assert cleanup.clean(image_folder(image.generation))
    assert default_storage.exists(image.preview.name)


def test_a_references_files_stay_while_its_row_does():
    reference = make_reference()
    folder = reference_folder(reference.owner_id, reference.pk)
    assert cleanup.clean(folder)
    for field in (reference.file, reference.thumbnail):
        assert default_storage.exists(field.name)
    orphan = default_storage.save(f"{folder}/half.png", ContentFile(b"half"))
    Reference.objects.all().delete()
    assert cleanup.clean(f"{reference.owner_id}/references")
    for name in (reference.file.name, reference.thumbnail.name, orphan):
        assert not default_storage.exists(name)


def test_what_was_announced_and_never_settled_goes_in_the_end():
    cleanup.announce("1/references/a")
    name = default_storage.save("1/references/a/picture.png", ContentFile(b"half"))
    assert cleanup.clean_due(10) == 0
    assert default_storage.exists(name)
    make_due()
    assert cleanup.clean_due(10) == 1
    assert not default_storage.exists(name)


def test_what_was_announced_can_be_settled_until_it_is_nearly_due():
    cleanup.announce("a", "b", "c")
    assert cleanup.settle("a")
    assert not cleanup.settle("a")
    Discarded.objects.filter(folder="b").update(due_at=Now() + timedelta(seconds=59))
    with transaction.atomic():
        assert not cleanup.settle("b", "c")
        transaction.set_rollback(True)
    assert cleanup.settle("c")
    assert Discarded.objects.get().folder == "b"


def test_a_deleted_image_takes_its_files_along(django_capture_on_commit_callbacks):
    image = make_image()
    with django_capture_on_commit_callbacks(execute=True):
        lifecycle.delete_images(images=Image.objects.filter(pk=image.pk))
    assert not Image.objects.exists()
    assert not default_storage.exists(image.file.name)
    assert not default_storage.exists(image.thumbnail.name)


def test_only_so_many_folders_are_cleaned_at_a_time():
    for _ in range(3):
        cleanup.discard(image_folder(make_generation()))
    make_due()
    assert cleanup.clean_due(2) == 2
    assert Discarded.objects.count() == 1
