"""Listing predictions: order, pages, time limits."""

from __future__ import annotations

from typing import Any

import pytest

from tests.simulator.support import Simulator


def listed(sim: Simulator, path: str = "/v1/predictions", **query: str) -> dict[str, Any]:
    """Return one page."""
    response = sim.request("GET", path, params=query)
    assert response.status_code == 200, response.text
    return dict(response.json())


def ids_of(page: dict[str, Any]) -> list[str]:
    """Return the ids on a page."""
    return [prediction["id"] for prediction in page["results"]]


def test_predictions_are_listed_newest_first(sim: Simulator) -> None:
    ids = [sim.created()["id"] for _ in range(3)]
    page = listed(sim)
    assert ids_of(page) == ids[::-1]
    assert (page["next"], page["previous"]) == (None, None)


def test_pages_of_100_are_linked_both_ways(sim: Simulator) -> None:
    ids = [sim.created()["id"] for _ in range(205)][::-1]
    first = listed(sim)
    second = listed(sim, first["next"])
    third = listed(sim, second["next"])
    assert [ids_of(page) for page in (first, second, third)] == [ids[:100], ids[100:200], ids[200:]]
    assert (first["previous"], third["next"]) == (None, None)
    assert ids_of(listed(sim, third["previous"])) == ids[100:200]
    back = listed(sim, second["previous"])
    assert ids_of(back) == ids[:100]
    assert back["previous"] is None


def test_a_page_stays_the_same_when_predictions_are_added(sim: Simulator) -> None:
    for _ in range(101):
        sim.created()
    next_url = listed(sim)["next"]
    before = ids_of(listed(sim, next_url))
    sim.created()
    assert ids_of(listed(sim, next_url)) == before


def test_created_after_and_before_limit_the_list(sim: Simulator) -> None:
    first, second, third = (sim.created() for _ in range(3))
    after = listed(sim, created_after=second["created_at"])
    before = listed(sim, created_before=second["created_at"])
    both = listed(sim, created_after=second["created_at"], created_before=third["created_at"])
    assert ids_of(after) == [third["id"], second["id"]]
    assert ids_of(before) == [first["id"]]
    assert ids_of(both) == [second["id"]]


def test_links_keep_the_time_limits(sim: Simulator) -> None:
    created = [sim.created() for _ in range(103)]
    first = listed(sim, created_after=created[1]["created_at"])
    assert ids_of(listed(sim, first["next"])) == [created[2]["id"], created[1]["id"]]


def test_nothing_comes_from_the_web_site(sim: Simulator) -> None:
    sim.created()
    assert listed(sim, source="web")["results"] == []


@pytest.mark.parametrize(
    "query",
    [
        {"created_after": "yesterday"},
        {"created_before": "2026-01-01T00:00:00"},
        {"cursor": "?"},
        {"cursor": "c2lkZXdheXM6MQ=="},
    ],
)
def test_what_cannot_be_read_is_refused(sim: Simulator, query: dict[str, str]) -> None:
    assert sim.request("GET", "/v1/predictions", params=query).status_code == 422
