"""The publisher dies, its broker and its database go away, and channels answer badly or not at all.

What counts is in the books of the simulated channels: for every publication one product, whatever
happened on the way.
"""

import contextlib
import itertools
import signal
import time
from collections import Counter

import psutil
import pytest
import requests

from picture.embedded import has_ended
from tests.acceptance.shops import PRODUCTS, approve, books, give_accounts
from tests.faults.harness import FULL, RECOVERY_S, often
from tests.waiting import wait_until

SETTLE_S = 120.0
_tokens = itertools.count(1)
pytestmark = [pytest.mark.timeout(900)] if FULL else []


class Seller:
    """A user with accounts at both channels, and books of their own there."""

    def __init__(self, faults):
        self.faults = faults
        self.user = faults.user()
        self.token = f"token-{next(_tokens)}-of-{self.user.username}"
        for channel in PRODUCTS:  # an earlier test's
            self.user.http.delete(f"{faults.stack.url}/api/v1/channels/{channel}/", timeout=30)
        give_accounts(self.user, self.token)
        self.titles = Counter()

    def images(self, count):
        """Ids of approved images, approved in one call."""
        batch = self.user.finished(self.user.submit([f"picture {one}" for one in range(count)]))
        ids = [item["image"]["id"] for item in batch["items"]]
        approve(self.user, ids)
        return ids

    def publish(self, image_ids, title):
        """Have images published at both channels; the ids of the publications."""
        made = []
        for channel, product_type in PRODUCTS.items():
            body = {
                "image_ids": image_ids,
                "channel": channel,
                "product_type": product_type,
                "title": f"{title} {{index}}",
            }
            taken = self.user.call("POST", "publications/", 202, json=body).json()["results"]
            made += [one["publication"]["id"] for one in taken]
        self.titles.update(f"{title} {number}" for number in range(1, len(image_ids) + 1))
        return made

    def settle(self, fault, ids):
        """Wait until publications have ended, and compare them with the channels' books.

        lost            what is not published
        double-charged  products that there are too many or too few of
        leaked slots    publications that are held, calls of which the outcome is not known
        """
        rows = []

        def have_ended():
            rows[:] = self.faults.stack.rows(
                """
                SELECT id::text, status, error_code, error_message, crash_count,
                       held_until IS NOT NULL AS is_held
                FROM batches_publication WHERE id = ANY(%s::uuid[])
                """,
                ids,
            )
            return all(row["status"] != "publishing" for row in rows)

        with contextlib.suppress(AssertionError):  # what is missing is counted below
            wait_until(have_ended, timeout_s=SETTLE_S, every_s=0.1)
        assert len(rows) == len(ids)
        lost = [f"lost: {row}" for row in rows if row["status"] != "published"]
        doubled = []
        shown = books(self.faults.simulator, self.token)
        for channel in PRODUCTS:
            book = shown[channel]
            found = Counter(product["title"] for product in book["products"])
            if found != self.titles or book["products_created"] != self.titles.total():
                doubled.append(f"{channel}: {found}, {book['products_created']} were created")
        unknown = self.faults.stack.rows(
            "SELECT publication_id::text, step, outcome FROM batches_publicationattempt "
            "WHERE publication_id = ANY(%s::uuid[]) AND outcome IN ('open', 'unknown')",
            ids,
        )
        leaked = [row for row in rows if row["is_held"]] + unknown
        fault.row.lost += len(lost)
        fault.row.double_charged += len(doubled)
        fault.row.leaked += len(leaked)
        fault.settled = True
        assert not lost + doubled + leaked, [*lost, *doubled, *leaked]


@pytest.fixture
def seller(faults):
    shops(faults, publish_seconds=0.0, media_seconds=0.0)
    return Seller(faults)


def shops(faults, **settings):
    url = f"{faults.simulator.url}/_sim/shops/settings"
    requests.post(url, json=settings, timeout=10).raise_for_status()


def held(faults, ids):
    """Publications that are being worked on now."""
    rows = faults.stack.rows(
        "SELECT id::text FROM batches_publication "
        "WHERE id = ANY(%s::uuid[]) AND status = 'publishing' AND held_until IS NOT NULL",
        ids,
    )
    return {row["id"] for row in rows}


def calling(faults, ids, step):
    """Publications of which this step is under way, on record and not answered."""
    rows = faults.stack.rows(
        "SELECT publication_id::text AS id FROM batches_publicationattempt "
        "WHERE publication_id = ANY(%s::uuid[]) AND step = %s AND outcome = 'open'",
        ids,
        step,
    )
    return {row["id"] for row in rows}


def worst_recovery(faults, hit):
    """The longest from a moment until what was hit at it was worked on again, or had ended.

    As in the harness, from the last kill if that came in between.
    """
    kills = [*faults.stack.killed_at, *(line["at"] for line in faults._lines("kills"))]
    moves = {}
    for line in faults._lines("trace"):
        if "publication" in line:
            moves.setdefault(line["publication"], []).append(line["at"])
    wall_s = time.time() - time.monotonic()
    for row in faults.stack.rows(
        "SELECT id::text, extract(epoch FROM finished_at)::float8 AS at "
        "FROM batches_publication WHERE id = ANY(%s::uuid[]) AND finished_at IS NOT NULL",
        [one.partition(".")[0] for one in hit],
    ):
        moves.setdefault(row["id"], []).append(row["at"] - wall_s)
    worst_s = 0.0
    for one, moments in hit.items():
        for moment in moments:
            later = [at for at in moves[one.partition(".")[0]] if at > moment]
            seconds = min(later, default=moment) - moment
            if seconds > RECOVERY_S:
                seconds = min(later) - max(at for at in (moment, *kills) if at < min(later))
            worst_s = max(worst_s, seconds)
    return worst_s


# What the channels are asked for in each step, Printify and Shopify.
MAKING = {
    "product": ("create_product", "productSet"),
    "publish": ("publish_product", "publishablePublish"),
}


def asked(seller, step):
    """How often the seller's channels were asked to take a step."""
    shown = books(seller.faults.simulator, seller.token)
    return sum(
        book["calls"].get(operation, 0) for book in shown.values() for operation in MAKING[step]
    )


def test_a_publisher_that_is_killed_twice_makes_each_product_once(faults, seller):
    with faults.injecting("kill -9 of the publisher midway, twice") as fault:
        hit = {}
        for number in range(often(5, 1)):
            # The answers are late, long enough for a kill to come between them and their effect.
            for operation in itertools.chain(*MAKING.values()):
                faults.simulator.fault("shop_slow", operation=operation, seconds=0.6)
            before = {step: asked(seller, step) for step in MAKING}
            ids = seller.publish(seller.images(3), f"killed {number}")
            for step in MAKING:
                affected = wait_until(
                    lambda ids=ids, step=step: (
                        len(found := calling(faults, ids, step)) >= 3 and found
                    ),
                    every_s=0.01,
                )
                # On record they are before they are made: some have arrived, too.
                wait_until(
                    lambda step=step, least=before[step] + 3: asked(seller, step) >= least,
                    every_s=0.01,
                )
                killed_at = faults.stack.kill("worker-generate")
                fault.injected(len(affected))
                for one in affected:
                    hit.setdefault(one, []).append(killed_at)
                faults.stack.await_ready("worker-generate")
            seller.settle(fault, ids)
        fault.recovered(worst_recovery(faults, hit))


POINTS = {
    "publish_begins": "kill -9 before a call to a channel",
    "publish_unrecorded": "kill -9 before a call to a channel",
    "publish_unsent": "kill -9 before a call to a channel",
    "publish_unheard": "kill -9 after a call to a channel, its answer not stored",
    "publish_heard": "kill -9 between two steps of a publication",
    "publish_put_off": "kill -9 between two steps of a publication",
    "publish_unended": "kill -9 at the end of a publication",
    "publish_ended": "kill -9 at the end of a publication",
}
SHORT = ("publish_unsent", "publish_unheard")


def test_a_publisher_that_dies_at_any_point_around_a_call_repeats_none(faults, seller):
    points = POINTS if FULL else {point: POINTS[point] for point in SHORT}
    rows = sorted(set(points.values()))
    with faults.injecting(*rows) as them:
        by_row = dict(zip(rows, them, strict=True))
        for point, row in points.items():
            fault, count = by_row[row], often(2, 1)
            if point == "publish_put_off":
                shops(faults, publish_seconds=0.5, media_seconds=0.5)
            faults.crash(point, f"at {point}", gather=count * 2)
            ids = seller.publish(seller.images(count), f"at {point}")
            seller.settle(fault, ids)
            hit = faults.crashed(point)
            assert len({one.partition(".")[0] for one in hit}) == len(ids), point
            fault.injected(sum(map(len, hit.values())))
            fault.recovered(worst_recovery(faults, hit))


CHANNEL_FAULTS = {
    "channel's answer lost": [("shop_drop_after", {}), ("shop_status_after", {"status": 502})],
    "channel's answer nonsense": [("shop_garbage", {})],
    "channel away": [("shop_drop_before", {}), ("shop_status", {"status": 503})],
    "channel's 429": [("shop_throttled", {"retry_after": "1"})],
}


def test_channels_that_answer_badly_get_each_product_once(faults, seller):
    with faults.injecting(*CHANNEL_FAULTS) as them:
        for fault, kinds in zip(them, CHANNEL_FAULTS.values(), strict=True):
            for kind, options in kinds[: often(2, 1)]:
                faults.simulator._call("DELETE", "faults")
                images = seller.images(often(6, 2))
                # The calls that matter are hit for certain, so by the first rules.
                for operation in ("create_product", "productSet", "publish_product"):
                    faults.simulator.fault(kind, operation=operation, times=1, **options)
                faults.simulator.fault(kind, rate=0.2, **options)
                ids = seller.publish(images, f"{kind} {fault.name}")
                seller.settle(fault, ids)
                rules = faults.simulator._call("GET", "faults")["faults"]
                certain = [rule for rule in rules if rule["times"] == 1]
                assert [rule["applied"] for rule in certain] == [1, 1, 1], kind
                fault.injected(sum(rule["applied"] for rule in rules))


def test_redis_and_postgresql_are_away_while_images_are_published(faults, seller):
    names = ("Redis emptied while publishing", "PostgreSQL restart while publishing")
    with faults.injecting(*names) as (emptied, restarted):
        for number in range(often(3, 1)):
            images = seller.images(often(10, 3))
            for fault in (emptied, restarted):
                if fault is restarted:
                    images = seller.images(often(10, 3))
                faults.simulator.fault("shop_slow", seconds=0.3)
                ids = seller.publish(images, f"{fault.name} {number}")
                affected = wait_until(
                    lambda ids=ids: len(found := held(faults, ids)) >= 3 and found, every_s=0.01
                )
                if fault is emptied:
                    faults.stack.kill("redis")
                    faults.stack.empty_redis()
                    faults.stack.restart("redis")
                else:
                    server = psutil.Process(faults.stack.pids["postgres"])
                    faults.stack.kill("postgres", signal.SIGINT)
                    wait_until(lambda server=server: has_ended(server))
                    faults.stack.restart("postgres")
                back_at = time.monotonic()
                faults.simulator._call("DELETE", "faults")
                fault.injected(len(affected))
                seller.settle(fault, ids)
                # A task that found no database comes again after a while, ever longer.
                fault.recovered(
                    worst_recovery(faults, {one: [back_at] for one in affected}),
                    within_s=RECOVERY_S + 5,
                )
