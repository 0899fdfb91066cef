"""Reference images that are fetched from the web, and from nowhere else."""

import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from django.db import connection
from rest_framework.test import APIClient

from batches import references
from batches.models import Discarded, Generation, GenerationReference, Reference
from tests.batches.api.support import BATCHES, DEV, GENERATIONS, client_of, invalid, problem
from tests.factories import make_reference, make_user, picture

pytestmark = pytest.mark.django_db

REFERENCES = "/api/v1/references/"


class Web(ThreadingHTTPServer):
    """A web site: `pages` by path, each a status, headers and a body, or a function's."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Page)
        self.pages = {}
        self.asked = []
        self.release = threading.Event()

    def url(self, path="/fox.png"):
        return f"http://127.0.0.1:{self.server_port}{path}"


class Page(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        page = self.server.pages.get(self.path, (404, {}, b""))
        status, headers, body = page() if callable(page) else page
        self.send_response(status)
        for name, value in {"Content-Length": len(body), **headers}.items():
            if value is not None:
                self.send_header(name, str(value))
        self.end_headers()
        try:
            self.wfile.write(body)
        except ConnectionError:
            self.close_connection = True

    def log_message(self, *args):
        pass


@pytest.fixture
def web(settings):
    """A web site on this machine, which the operator has exempted."""
    site = Web()
    site.pages["/fox.png"] = (200, {}, picture())
    thread = threading.Thread(target=site.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    settings.REFERENCE_HOSTS = [f"127.0.0.1:{site.server_port}"]
    yield site
    site.release.set()
    site.shutdown()
    thread.join(10)
    site.server_close()


@pytest.fixture
def refuses(api, media, nothing_happens):
    """A URL must be refused, by a code, and must leave nothing."""

    def check(url, code):
        with nothing_happens():
            told = invalid(api.post(REFERENCES, {"url": url}))
            assert told.keys() == {"url"}
            assert told["url"][0] == code, told
            settings = {"model": DEV, "references": [{"url": url}]}
            told = invalid(api.post(GENERATIONS, {"prompt": "a fox", "settings": settings}))
            assert told["settings.references.0"][0] == code
        assert not Reference.objects.exists()
        assert not Discarded.objects.exists()
        assert not any(path.is_file() for path in media.rglob("*"))
        return told["settings.references.0"][1]

    return check


def test_a_picture_is_fetched_and_kept(api, web):
    answer = api.post(REFERENCES, {"url": web.url()})
    assert answer.status_code == 201, answer.content
    assert answer.json()["format"] == "png"
    stored = APIClient().get(answer.json()["url"])
    assert b"".join(stored.streaming_content) == picture()
    again = api.post(REFERENCES, {"url": web.url()})
    assert (again.status_code, again.json()["id"]) == (200, answer.json()["id"])


def test_a_redirect_is_followed(api, web):
    web.pages["/old"] = (302, {"Location": "/fox.png"}, b"")
    assert api.post(REFERENCES, {"url": web.url("/old")}).status_code == 201


PRIVATE = [
    "http://127.0.0.1/fox.png",
    "http://localhost/fox.png",
    "http://[::1]/fox.png",
    "http://10.0.0.1/fox.png",
    "http://192.168.1.1/fox.png",
    "http://169.254.169.254/latest/meta-data/",
    "http://0.0.0.0/fox.png",
    "http://2130706433/fox.png",
    "http://[::ffff:127.0.0.1]/fox.png",
]


@pytest.mark.parametrize("url", PRIVATE)
def test_a_private_address_is_refused(url, refuses):
    refuses(url, "private_address")


@pytest.mark.parametrize(
    "url",
    [
        "ftp://a.example/fox.png",
        "file:///etc/passwd",
        "data:image/png;base64,AAAA",
        "http://a.example:22/",
        "https://user:secret@a.example/",
        "http://",
        "fox.png",
        "http://a.example\\@127.0.0.1/",
    ],
)
def test_an_address_of_another_kind_is_refused(url, refuses):
    refuses(url, "invalid_url")


def test_a_redirect_to_a_private_address_is_refused(web, refuses):
    web.pages["/meta"] = (302, {"Location": "http://169.254.169.254/latest/meta-data/"}, b"")
    refuses(web.url("/meta"), "private_address")
    # The exemption is for one port.
    web.pages["/in"] = (302, {"Location": "http://127.0.0.1:9/fox.png"}, b"")
    refuses(web.url("/in"), "invalid_url")
    web.pages["/in"] = (302, {"Location": "http://127.0.0.1/fox.png"}, b"")
    refuses(web.url("/in"), "private_address")


@pytest.mark.parametrize("status", [403, 404, 500])
def test_a_picture_that_is_not_there_is_refused(status, web, refuses):
    web.pages["/fox.png"] = (status, {}, b"secret of the host")
    told = refuses(web.url(), "not_reachable")
    assert "secret" not in told
    assert "fox.png" not in told


def test_a_host_that_does_not_answer_is_told(refuses, settings):
    settings.REFERENCE_HOSTS = ["127.0.0.1"]
    refuses("http://127.0.0.1:9/fox.png", "not_reachable")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"<!doctype html><p>fox", "unsupported_format"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "unsupported_format"),
        (picture(size=(300, 300))[:-50], "undecodable"),
    ],
)
def test_what_is_no_picture_is_refused(body, code, web, refuses):
    web.pages["/fox.png"] = (200, {"Content-Type": "image/png"}, body)
    refuses(web.url(), code)


def test_a_file_that_is_too_large_is_refused(web, refuses, settings):
    settings.MAX_REFERENCE_BYTES = 100
    web.pages["/fox.png"] = (200, {}, b"x" * 200)
    refuses(web.url(), "too_large")


def test_a_file_of_no_stated_length_that_is_too_large_is_refused(web, refuses, settings):
    settings.MAX_REFERENCE_BYTES = 100
    web.pages["/fox.png"] = (200, {"Content-Length": None}, b"x" * 200)
    refuses(web.url(), "too_large")


def test_a_site_that_takes_too_long_is_given_up(web, refuses, monkeypatch):
    monkeypatch.setattr(references, "FETCH_DEADLINE_S", 0.2)

    def slow():
        web.release.wait(30)
        return 200, {}, picture()

    web.pages["/fox.png"] = slow
    refuses(web.url(), "not_reachable")


def test_all_urls_of_a_request_share_one_deadline(web, api, monkeypatch):
    monkeypatch.setattr(references, "FETCH_DEADLINE_S", 0.4)

    def slow():
        web.release.wait(0.3)
        return 200, {}, picture()

    web.pages |= {f"/{number}": slow for number in range(8)}
    prompts = [
        {"text": "a", "settings": {"references": [{"url": web.url(f"/{number}")}]}}
        for number in range(8)
    ]
    told = invalid(api.post(BATCHES, {"prompts": prompts, "settings": {"model": DEV}}))
    assert [code for code, _ in told.values()] == ["not_reachable"]
    assert len(web.asked) <= 3
    assert not Reference.objects.exists()


def test_one_url_of_many_prompts_is_fetched_once(api, web):
    body = {
        "prompts": [{"text": str(number)} for number in range(5)],
        "settings": {"model": DEV, "references": [{"url": web.url()}]},
    }
    answer = api.post(BATCHES, body)
    assert answer.status_code == 202, answer.content
    assert web.asked == ["/fox.png"]
    reference = Reference.objects.get()
    assert answer.json()["settings"]["references"] == [{"id": str(reference.pk)}]
    rows = GenerationReference.objects.values_list("reference", flat=True)
    assert list(rows) == [reference.pk] * 5
    # No address is kept: it may hold a key.
    assert not Generation.objects.filter(settings__contains={"references": [{"url": web.url()}]})


def test_different_urls_with_the_same_bytes_are_one_reference(api, web, owner):
    web.pages["/other"] = web.pages["/fox.png"]
    known = make_reference(owner)
    settings = {
        "model": "bytedance/seedream-4",
        "references": [{"url": web.url()}, {"id": str(known.pk)}, {"url": web.url("/other")}],
    }
    answer = api.post(GENERATIONS, {"prompt": "a fox", "settings": settings})
    assert answer.status_code == 202, answer.content
    first, second, third = (one["id"] for one in answer.json()["references"])
    assert (first, second) == (third, str(known.pk))
    assert Reference.objects.count() == 2


def test_nothing_is_fetched_for_a_request_that_is_refused_anyway(api, web):
    settings = {"model": DEV, "steps": 1_000, "references": [{"url": web.url()}]}
    assert invalid(api.post(GENERATIONS, {"prompt": "a fox", "settings": settings})).keys() == {
        "settings.steps"
    }
    assert web.asked == []


def test_one_that_cannot_be_had_leaves_nothing_of_the_others(api, web, media):
    references_ = [{"url": web.url()}, {"url": web.url("/nothing")}]
    settings = {"model": "bytedance/seedream-4", "references": references_}
    told = invalid(api.post(GENERATIONS, {"prompt": "a fox", "settings": settings}))
    assert {field: code for field, (code, _) in told.items()} == {
        "settings.references.1": "not_reachable"
    }
    assert not Reference.objects.exists()
    assert not any(path.is_file() for path in media.rglob("*"))


def test_a_replay_fetches_nothing(api, web):
    headers = {"Idempotency-Key": "one"}
    first = api.post(REFERENCES, {"url": web.url()}, headers=headers)
    web.pages.clear()
    again = api.post(REFERENCES, {"url": web.url()}, headers=headers)
    assert again.json() == first.json()
    assert again["Idempotent-Replayed"] == "true"
    assert web.asked == ["/fox.png"]


@pytest.mark.django_db(transaction=True)
def test_slow_sites_do_not_take_all_threads(web, owner):
    begun = threading.Semaphore(0)

    def slow():
        begun.release()
        web.release.wait(30)
        return 200, {}, picture()

    web.pages["/slow"] = slow
    clients, answers = [client_of(make_user()) for _ in range(4)], []

    def fetch(client):
        answers.append(client.post(REFERENCES, {"url": web.url("/slow")}))
        connection.close()

    threads = [
        threading.Thread(target=fetch, args=(client,))
        for client in clients[: references.FETCHES_AT_A_TIME]
    ]
    for thread in threads:
        thread.start()
        assert begun.acquire(timeout=30)
    started = time.monotonic()
    answer = clients[-1].post(REFERENCES, {"url": web.url()})
    problem(answer, 503, "busy")
    assert answer["Retry-After"] == "2"
    assert time.monotonic() - started < 5  # it did not wait for the others
    web.release.set()
    for thread in threads:
        thread.join(30)
    assert [answer.status_code for answer in answers] == [201, 201, 201]
    assert clients[-1].post(REFERENCES, {"url": web.url()}).status_code == 201


@pytest.mark.django_db(transaction=True)
def test_nobody_takes_more_than_one_of_the_places_for_fetching(web, owner):
    begun = threading.Semaphore(0)

    def slow():
        begun.release()
        web.release.wait(30)
        return 200, {}, picture()

    web.pages["/slow"] = slow
    answers = []

    def fetch():
        answers.append(client_of(owner).post(REFERENCES, {"url": web.url("/slow")}))
        connection.close()

    thread = threading.Thread(target=fetch)
    thread.start()
    assert begun.acquire(timeout=30)
    problem(client_of(owner).post(REFERENCES, {"url": web.url()}), 503, "busy")
    assert client_of(make_user()).post(REFERENCES, {"url": web.url()}).status_code == 201
    web.release.set()
    thread.join(30)
    assert answers[0].status_code == 201


@pytest.mark.django_db(transaction=True)
def test_a_key_is_taken_while_the_first_request_fetches(web, owner):
    begun = threading.Event()

    def slow():
        begun.set()
        web.release.wait(30)
        return 200, {}, picture()

    web.pages["/slow"] = slow
    body, headers, answers = {"url": web.url("/slow")}, {"Idempotency-Key": "one"}, []
    clients = [client_of(owner) for _ in range(2)]

    def first():
        answers.append(clients[0].post(REFERENCES, body, headers=headers))
        connection.close()

    thread = threading.Thread(target=first)
    thread.start()
    assert begun.wait(30)
    problem(clients[1].post(REFERENCES, body, headers=headers), 409, "idempotency_key_in_use")
    web.release.set()
    thread.join(30)
    again = clients[1].post(REFERENCES, body, headers=headers)
    assert again["Idempotent-Replayed"] == "true"
    assert again.json() == answers[0].json()
    assert web.asked == ["/slow"]
