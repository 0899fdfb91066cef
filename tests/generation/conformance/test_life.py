"""From a submission to its end: what every provider's adapter does alike."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

from generation.provider import ErrorClass, PredictionStatus, Provider
from tests.faults.proxy import TcpProxy
from tests.generation.conformance.checks import (
    accepted,
    ended_with,
    fetched,
    is_image,
    refused,
)
from tests.generation.conformance.harness import Harness
from tests.generation.conformance.harnesses import every, those

ORDER = [PredictionStatus.STARTING, PredictionStatus.RUNNING, PredictionStatus.SUCCEEDED]


class TestSubmission:
    @every
    def test_is_followed_to_an_image(self, harness: Harness, prompt: str) -> None:
        provider: Provider = harness.provider()
        assert provider.name == harness.name
        assert provider.sends_webhooks is (harness.signs_webhooks is not None)
        submitted = accepted(provider.submit(harness.request(prompt)))
        seen = [submitted.status]

        def look(found) -> bool:
            seen.append(accepted(found).status)
            return found.is_terminal

        ended = harness.until(provider, submitted.id, look)
        assert ended.status == PredictionStatus.SUCCEEDED
        assert ended.id == submitted.id
        assert all(ORDER.index(one) <= ORDER.index(other) for one, other in pairwise(seen))
        (output,) = ended.outputs
        is_image(fetched(provider, ended, output))
        assert (harness.creates(prompt), harness.charges(prompt)) == (1, 1)

    @every
    def test_has_an_end_that_stays(self, harness: Harness, prompt: str) -> None:
        provider = harness.provider()
        submitted = accepted(provider.submit(harness.request(prompt)))
        ended = harness.ended(provider, submitted.id)
        again = accepted(harness.provider().fetch(submitted.id))
        assert (again.status, again.outputs) == (ended.status, ended.outputs)
        assert (again.run_s, again.total_s) == (ended.run_s, ended.total_s)
        # By another object: nothing of it was in the memory of the first.
        is_image(fetched(harness.provider(), again, again.outputs[0]))

    @every
    def test_names_each_work_differently(self, harness: Harness, prompt: str) -> None:
        provider = harness.provider()
        ids = [accepted(provider.submit(harness.request(prompt))).id for _ in range(3)]
        assert len(set(ids)) == 3

    @every
    def test_can_be_made_by_many_threads_at_once(self, harness: Harness, prompt: str) -> None:
        provider = harness.provider()
        prompts = [f"{prompt} {number}" for number in range(8)]

        def submit(own: str) -> str:
            return accepted(provider.submit(harness.request(own))).id

        with ThreadPoolExecutor(len(prompts)) as threads:
            ids = list(threads.map(submit, prompts))
        assert len(set(ids)) == len(prompts)
        for own, prediction_id in zip(prompts, ids, strict=True):
            ended = harness.ended(provider, prediction_id)
            assert ended.status == PredictionStatus.SUCCEEDED
            assert harness.creates(own) == 1

    @every
    def test_uses_few_connections(self, harness: Harness, prompt: str, network: TcpProxy) -> None:
        provider = harness.provider(url=f"http://127.0.0.1:{network.port}")
        for number in range(5):
            submitted = accepted(provider.submit(harness.request(f"{prompt} {number}")))
            for _ in range(3):
                accepted(provider.fetch(submitted.id))
        assert 1 <= network.connections <= 2

    @every
    def test_nobody_there_is_an_absent_provider(
        self, harness: Harness, prompt: str, refused_url: str
    ) -> None:
        provider = harness.provider(url=refused_url)
        away = ErrorClass.PROVIDER_UNAVAILABLE
        refused(provider.submit(harness.request(prompt)), away)
        refused(provider.fetch("an-id"), away)
        refused(provider.cancel("an-id"), away)
        refused(provider.check(), away)


class TestCancelling:
    @every
    def test_waiting_work_costs_nothing(self, harness: Harness, prompt: str) -> None:
        harness.hold("queue")
        provider = harness.provider()
        submitted = accepted(provider.submit(harness.request(prompt)))
        assert not submitted.is_terminal
        accepted(provider.cancel(submitted.id))
        ended_with(harness.ended(provider, submitted.id), ErrorClass.CANCELED)
        assert harness.charges(prompt) == 0

    @every
    def test_running_work_stops_it(self, harness: Harness, prompt: str) -> None:
        harness.hold("run")
        provider = harness.provider()
        submitted = accepted(provider.submit(harness.request(prompt)))
        harness.until(
            provider, submitted.id, lambda found: found.status == PredictionStatus.RUNNING
        )
        accepted(provider.cancel(submitted.id))
        ended_with(harness.ended(provider, submitted.id), ErrorClass.CANCELED)

    @every
    def test_finished_work_changes_nothing(self, harness: Harness, prompt: str) -> None:
        provider = harness.provider()
        submitted = accepted(provider.submit(harness.request(prompt)))
        ended = harness.ended(provider, submitted.id)
        answer = accepted(provider.cancel(submitted.id))
        assert answer.status == PredictionStatus.SUCCEEDED
        again = accepted(provider.fetch(submitted.id))
        assert (again.status, again.outputs) == (ended.status, ended.outputs)

    @every
    def test_twice_is_as_good_as_once(self, harness: Harness, prompt: str) -> None:
        harness.hold("run")
        provider = harness.provider()
        submitted = accepted(provider.submit(harness.request(prompt)))
        for _ in range(2):
            accepted(provider.cancel(submitted.id))
        ended_with(harness.ended(provider, submitted.id), ErrorClass.CANCELED)
        ended_with(provider.cancel(submitted.id), ErrorClass.CANCELED)

    @every
    def test_one_leaves_the_others_alone(self, harness: Harness, prompt: str) -> None:
        harness.hold("run")
        provider = harness.provider()
        one, other = (
            accepted(provider.submit(harness.request(f"{prompt} {number}"))) for number in (1, 2)
        )
        accepted(provider.cancel(other.id))
        ended_with(harness.ended(provider, other.id), ErrorClass.CANCELED)
        assert not accepted(provider.fetch(one.id)).is_terminal


class TestUnknownIds:
    @every
    def test_are_known_as_such(self, harness: Harness) -> None:
        provider = harness.provider()
        for never in ("never-was", "../x?y=1#z", "00000000-0000-0000-0000-000000000000", "ä\n"):
            for answer in (provider.fetch(never), provider.cancel(never)):
                failure = getattr(answer, "failure", answer)
                refused(failure, *harness.unknown_id)


class TestDeadline:
    @those(lambda one: "queue" in one.stops)
    def test_passes_in_the_queue(self, harness: Harness, prompt: str) -> None:
        harness.hold("queue")
        harness.hasten()
        provider = harness.provider()
        submitted = accepted(provider.submit(harness.request(prompt, cancel_after_s=5)))
        ended_with(harness.ended(provider, submitted.id), ErrorClass.TIMEOUT_RUN)
        assert harness.charges(prompt) == 0

    @those(lambda one: "run" in one.stops)
    def test_passes_in_the_run(self, harness: Harness, prompt: str) -> None:
        harness.hold("run")
        harness.hasten()
        provider = harness.provider()
        submitted = accepted(provider.submit(harness.request(prompt, cancel_after_s=5)))
        ended_with(harness.ended(provider, submitted.id), ErrorClass.TIMEOUT_RUN)
        assert harness.charges(prompt) == 1

    @every
    def test_that_is_far_away_is_no_obstacle(self, harness: Harness, prompt: str) -> None:
        provider = harness.provider()
        submitted = accepted(provider.submit(harness.request(prompt, cancel_after_s=600)))
        assert harness.ended(provider, submitted.id).status == PredictionStatus.SUCCEEDED


class TestProgress:
    @those(lambda one: one.tells_progress)
    def test_grows(self, harness: Harness, prompt: str) -> None:
        harness.pace(0.6)
        provider = harness.provider()
        submitted = accepted(provider.submit(harness.request(prompt)))
        told: list[int] = []

        def look(found) -> bool:
            if found.progress is not None:
                told.append(found.progress)
            return found.is_terminal

        ended = harness.until(provider, submitted.id, look)
        assert ended.progress == 100
        assert told == sorted(told)
        assert any(0 < progress < 100 for progress in told), told


class TestCost:
    @those(lambda one: one.tells_run_s)
    def test_is_told_by_the_time_of_the_run(self, harness: Harness, prompt: str) -> None:
        harness.pace(0.3)
        provider = harness.provider()
        submitted = accepted(provider.submit(harness.request(prompt)))
        ended = harness.ended(provider, submitted.id)
        assert ended.run_s is not None
        assert 0.25 <= ended.run_s < 10
        assert ended.total_s is None or ended.total_s >= ended.run_s - 0.05

    @those(lambda one: one.tells_run_s)
    def test_is_told_for_work_that_was_stopped(self, harness: Harness, prompt: str) -> None:
        harness.hold("run")
        provider = harness.provider()
        submitted = accepted(provider.submit(harness.request(prompt)))
        harness.until(
            provider, submitted.id, lambda found: found.status == PredictionStatus.RUNNING
        )
        accepted(provider.cancel(submitted.id))
        ended = harness.ended(provider, submitted.id)
        assert ended.run_s is not None

    @those(lambda one: one.tells_billed_images)
    def test_is_told_by_the_images(self, harness: Harness, prompt: str) -> None:
        provider = harness.provider()
        submitted = accepted(provider.submit(harness.request(prompt, images=2)))
        ended = harness.ended(provider, submitted.id)
        assert (len(ended.outputs), ended.billed_images) == (2, 2)
