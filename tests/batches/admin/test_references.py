"""The page of reference images."""

import re
from html import unescape

import pytest

from batches.models import Reference
from tests.batches.admin.support import (
    html_of,
    list_url,
    listed,
    page,
    page_url,
    queries_of,
    unbounded_counts,
)
from tests.factories import make_generation, make_reference, make_user

pytestmark = pytest.mark.django_db


def test_the_list_shows_pictures_that_the_api_serves(operator, client):
    reference = make_reference()
    html = html_of(operator.get(list_url(Reference)))
    assert page_url(reference) in html
    assert "8 x 6 px" in html
    (src,) = re.findall(r'<img class="thumbnail" src="([^"]+)"', html)
    client.logout()
    assert b"".join(client.get(unescape(src)).streaming_content)


def test_the_page_shows_what_is_made_from_it(operator):
    reference = make_reference()
    assert reference.sha256 in page(operator, reference)
    generation = make_generation(reference.owner, references=(reference.pk,), kind="derive")
    html = page(operator, reference)
    assert page_url(generation) in html
    # The storage's own addresses lead past the checks of the API.
    assert f'href="/{reference.file.name}' not in html
    assert reference.file.name in html


def test_references_are_found_by_id_and_owner(operator):
    wanted, other = make_reference(make_user("anna")), make_reference()
    for term in (str(wanted.pk), "anna"):
        assert listed(operator, Reference, q=term) == {wanted.pk}
    assert listed(operator, Reference, owner=other.owner_id) == {other.pk}
    assert listed(operator, Reference, q="x") == set()


def test_a_list_of_many_takes_as_many_queries_as_one_of_few(operator):
    owner = make_user()
    for colour in ("red", "green"):
        make_reference(owner, colour)
    few = queries_of(operator, list_url(Reference))
    for colour in ("blue", "black", "white", "grey", "pink"):
        make_reference(owner, colour)
    many = queries_of(operator, list_url(Reference))
    assert len(many) == len(few)
    assert not unbounded_counts(many)


def test_nothing_can_be_changed_there(operator, client):
    reference = make_reference()
    assert operator.post(page_url(reference), {"format": "gif"}).status_code == 403
    client.force_login(make_user())
    assert client.get(list_url(Reference)).status_code == 302
