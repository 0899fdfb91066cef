"""Uploading input files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from datetime import datetime, timedelta

from tests.simulator.support import FLUX_DEV, Simulator


def test_a_file_is_described_listed_read_and_deleted(sim: Simulator) -> None:
    response = sim.request(
        "POST",
        "/v1/files",
        files={"content": ("cat.png", b"bytes of a cat", "image/png")},
        data={"metadata": '{"of": "a cat"}'},
    )
    assert response.status_code == 201
    file = response.json()
    assert (file["name"], file["content_type"], file["size"]) == ("cat.png", "image/png", 14)
    assert file["checksums"]["sha256"] == hashlib.sha256(b"bytes of a cat").hexdigest()
    assert file["metadata"] == {"of": "a cat"}
    created, expires = (datetime.fromisoformat(file[key]) for key in ("created_at", "expires_at"))
    assert expires - created == timedelta(hours=1)
    assert sim.request("GET", file["urls"]["get"]).json() == file
    assert sim.request("GET", "/v1/files").json()["results"] == [file]
    assert sim.request("DELETE", file["urls"]["get"]).status_code == 204
    assert sim.request("GET", file["urls"]["get"]).status_code == 404
    assert sim.request("DELETE", file["urls"]["get"]).status_code == 404


def test_fields_of_the_form_win_over_the_part(sim: Simulator) -> None:
    response = sim.request(
        "POST",
        "/v1/files",
        files={"content": ("cat", b"x")},
        data={"filename": "dog.webp", "type": "image/webp"},
    )
    assert response.json()["name"] == "dog.webp"
    assert response.json()["content_type"] == "image/webp"


def test_an_uploaded_file_can_be_an_input(sim: Simulator) -> None:
    file = sim.request("POST", "/v1/files", files={"content": ("cat", b"x")}).json()
    assert sim.run(FLUX_DEV, image=file["urls"]["get"])["status"] == "succeeded"


def test_malformed_uploads_are_refused(sim: Simulator) -> None:
    cat = {"content": ("cat", b"x")}
    no_file = sim.request("POST", "/v1/files", files={"other": ("cat", b"x")})
    no_json = sim.request("POST", "/v1/files", files=cat, data={"metadata": "["})
    long_name = sim.request("POST", "/v1/files", files=cat, data={"filename": "x" * 256})
    no_form = sim.request("POST", "/v1/files", data=b"x")
    answers = (no_file, no_json, long_name, no_form)
    assert [answer.status_code for answer in answers] == [422, 422, 422, 400]


def test_a_file_over_100_mb_is_refused(sim: Simulator) -> None:
    head = (
        b'--cut\r\nContent-Disposition: form-data; name="content"; filename="large"\r\n'
        b"Content-Type: application/octet-stream\r\n\r\n"
    )

    def body() -> Iterator[bytes]:
        yield head
        for _ in range(101):
            yield bytes(1_000_000)
        yield b"\r\n--cut--\r\n"

    response = sim.request(
        "POST",
        "/v1/files",
        data=body(),
        headers={"Content-Type": "multipart/form-data; boundary=cut"},
    )
    assert response.status_code == 413
    assert response.json() == {"detail": "Files must be less than 100MB in size"}


def test_uploads_are_refused_on_request(sim: Simulator) -> None:
    sim.fault("upload_status", status=503, hits=2)
    cat = {"content": ("cat", b"x")}
    answers = [sim.request("POST", "/v1/files", files=cat) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [503, 503, 201]
    assert len(sim.request("GET", "/v1/files").json()["results"]) == 1
    assert (
        sim.request("POST", "/_sim/faults", json={"kind": "upload_status", "prompt": "x"}).ok
        is False
    )
