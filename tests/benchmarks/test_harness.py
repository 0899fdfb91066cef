"""The table, its verdicts, and the benchmarks that are quick at a small size."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO

import pytest
from pytest_django import Settings

from benchmarks import admission
from benchmarks.harness import Row, median_percentile, number, percentile
from benchmarks.instant import SIZE_PX, InstantProvider
from benchmarks.load import Shot, fire
from benchmarks.refill import refills
from generation import images
from generation.provider import Prediction, SubmitRequest

ROW = Row("name", "what was measured", 50.0, "ms")


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [
        ([7.0], 95, 7.0),
        ([3.0, 1.0, 2.0], 50, 2.0),
        ([4.0, 3.0, 2.0, 1.0], 50, 2.0),
        ([float(n) for n in range(1, 101)], 95, 95.0),
        ([float(n) for n in range(1, 21)], 95, 19.0),
        ([1.0, 2.0], 0, 1.0),
        ([1.0, 2.0], 100, 2.0),
    ],
)
def test_a_percentile_is_one_of_the_values(
    values: list[float], percent: float, expected: float
) -> None:
    assert percentile(values, percent) == expected


def test_repetitions_give_the_median_of_their_percentiles() -> None:
    assert median_percentile([[1, 9], [2, 8], [3, 100]], 100) == 9


@pytest.mark.parametrize(
    ("row", "verdict"),
    [
        (ROW, "info"),
        (replace(ROW, at_most=50), "ok"),
        (replace(ROW, at_most=49.9), "over"),
        (replace(ROW, at_least=50), "ok"),
        (replace(ROW, at_least=50.1), "over"),
        # With a baseline the bound is on the ratio.
        (replace(ROW, baseline=25, at_most=2), "ok"),
        (replace(ROW, baseline=24, at_most=2), "over"),
        (replace(ROW, baseline=100, at_least=0.5), "ok"),
        (replace(ROW, baseline=101, at_least=0.5), "over"),
        (replace(ROW, baseline=1), "info"),
    ],
)
def test_the_verdict_follows_the_bound(row: Row, verdict: str) -> None:
    assert row.verdict == verdict
    assert row.ok == (verdict != "over")


def test_a_row_shows_its_figures_and_what_they_are() -> None:
    figures, what = replace(ROW, baseline=25, at_most=4).lines()
    assert figures.split() == ["name", "50", "ms", "25", "ms", "2.00x", "<=", "4x", "ok"]
    assert what.strip() == "what was measured"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.01234, "0.0123"),
        (1 / 3, "0.333"),
        (20, "20"),
        (99.96, "100"),
        (12345, "12,345"),
    ],
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert number(value) == text


def test_a_refill_is_the_submission_beyond_the_cap(settings: Settings) -> None:
    settings.MAX_PARALLEL_PER_USER = 2
    assert refills(freed=[5.0, 4.0, 9.0, 8.0], received=[1.0, 1.1, 5.25, 4.125]) == [125, 250]


def test_what_the_instant_provider_makes_is_an_image() -> None:
    provider, file = InstantProvider(), BytesIO()
    answer = provider.submit(SubmitRequest(model="benchmark/instant", input={}))
    assert isinstance(answer, Prediction)
    provider.download(answer.outputs[0], file, prediction_id=answer.id, max_bytes=100_000)
    verified = images.verify(file)
    assert isinstance(verified, images.VerifiedImage)
    assert (verified.width_px, verified.height_px) == (SIZE_PX, SIZE_PX)


class Handler(BaseHTTPRequestHandler):
    """Answers a POST with the status that its path names."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(204)
        self.end_headers()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(int(self.path[1:]))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_each_shot_is_made_in_its_time(url: str) -> None:
    shots = [Shot(0.1, 0, "", "/202"), Shot(0, 1, "", "/201"), Shot(0.05, 0, "", "/204", {})]
    hits = fire(url, shots)
    assert [hit.status for hit in hits] == [202, 201, 204]
    start = hits[1].due_monotonic
    assert [hit.due_monotonic - start for hit in hits] == pytest.approx([0.1, 0, 0.05])
    assert all(0 < hit.latency_s < 1 for hit in hits)


def test_a_refused_shot_is_an_error(url: str) -> None:
    with pytest.raises(RuntimeError, match="/429 answered 429"):
        fire(url, [Shot(0, 0, "", "/429")])


@pytest.mark.django_db(transaction=True)
def test_admissions_of_a_short_and_a_longer_queue(settings: Settings) -> None:
    settings.PROVIDER_POOLS = {"replicate": {"capacity": 1_000}}
    rows = admission.measure(users=200, repetitions=1, admissions=2)
    assert [row.figure > 0 for row in rows] == [True, True]
