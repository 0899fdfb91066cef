"""How long somebody with a million images waits for a page of the gallery.

The rows are made by the database itself: 1,000,000 images of one user among 100,000 of a hundred
others, four to a generation, over a year. Words, tags, models, formats and reviews are spread by
hashes, each with a share of its own. The pages are asked for through the whole of the web
application, in this process; the plans of what it then asks the database are looked at as well.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from django.core.management import call_command
from django.db import connection, transaction
from rest_framework.test import APIClient

from batches.models import Image
from benchmarks import queue
from benchmarks.harness import REPETITIONS, Row, median_percentile
from benchmarks.lab import User, data_folder, make_users
from picture import embedded

IMAGES = "/api/v1/images/"
OWN = 1_000_000
OTHERS = 100
REQUESTS = 20
BOUND_MS = 50
HARDEST = "hardest searches"

# What each page asks for, by group. A comment tells how many of the images have it.
CASES: dict[str, dict[str, dict[str, Any]]] = {
    "list": {
        "newest": {},
        "oldest": {"order": "oldest"},
        "a hundred": {"page_size": 100},
        "before a time": {"created_before": "{middle}"},
    },
    "filter": {
        "pending": {"review_status": "pending"},  # 80 %
        "approved": {"review_status": "approved"},  # 10 %
        "reviewed": {"review_status": "approved,rejected"},  # 20 %
        "saved": {"saved": "true"},  # 10 %
        "not saved": {"saved": "false"},
        "one batch": {"batch": "{batch}"},  # 100
        "one generation": {"generation": "{generation}"},  # 4
        "usual model": {"model": "vendor/model-3"},  # 14 %
        "rare model": {"model": "vendor/rare"},  # 0.1 %
        "unknown model": {"model": "vendor/none"},
        "usual format": {"format": "webp"},  # 2 of 3
        "rare format": {"format": "svg"},  # 0.1 %
        "usual tag": {"tag": "best"},  # 30 %
        "rare tag": {"tag": "gift"},  # 50
        "two tags": {"tag": ["best", "sold"]},  # 0.3 %
        "unknown tag": {"tag": "none"},
        "a day": {"created_after": "{middle}", "created_before": "{day}"},
    },
    "combination": {
        "approved and saved": {"review_status": "approved", "saved": "true"},  # 1 %
        "of five": {  # about 90
            "review_status": "approved",
            "saved": "true",
            "format": "png",
            "model": "vendor/model-3",
            "tag": "best",
        },
        "rare model, rare format": {"model": "vendor/rare", "format": "svg"},  # 1 or none
        "rejected, unknown tag": {"review_status": "rejected", "tag": "none"},
        "approved, word": {"review_status": "approved", "q": "lantern"},  # 0.04 %
        "saved in a month": {
            "saved": "true", "created_after": "{middle}", "created_before": "{month}",
        },
        "batch, word": {"batch": "{batch}", "q": "watercolour"},
    },
    "search": {
        "rare word": {"q": "quokka"},  # 40
        "middling word": {"q": "lantern"},  # 0.4 %
        "frequent word": {"q": "teapot"},  # 4 %
        "common word": {"q": "watercolour"},  # half
        "two common words": {"q": "watercolour fox"},  # half
        "unknown word": {"q": "nonesuch"},
        "phrase": {"q": '"lantern autumn"'},  # none
        "either word": {"q": "quokka or teapot"},
        "without a word": {"q": "teapot -watercolour"},  # 2 %
        "common word, rare tag": {"q": "watercolour", "tag": "gift"},  # 25
        "common word, approved": {"q": "watercolour", "review_status": "approved"},  # 5 %
        "middling word, a hundred": {"q": "lantern", "page_size": 100},
        "middling word, oldest": {"q": "lantern", "order": "oldest"},
    },
    # Frequent, and not among the newest: nothing leads there soon.
    HARDEST: {
        "common until lately": {"q": "autumn"},  # the oldest 30 %
        "words that exclude each other": {"q": "watercolour oil"},  # none, of two halves
        "phrase of common words": {"q": '"number fox"'},  # none, of two words that all have
    },
}  # fmt: skip

# Nothing is dropped or switched off but the look-up of foreign keys, which are right by design.
_FILL = """
SET LOCAL session_replication_role = replica;

CREATE TEMPORARY TABLE other ON COMMIT DROP AS
SELECT n AS number, nextval(pg_get_serial_sequence('auth_user', 'id'))::int AS owner_id
FROM generate_series(0, %(others)s - 1) n;

INSERT INTO auth_user (id, username, password, first_name, last_name, email, is_superuser,
                       is_staff, is_active, date_joined)
SELECT owner_id, 'gallery-' || owner_id, '!', '', '', '', false, false, true, now() FROM other;

CREATE TEMPORARY TABLE made ON COMMIT DROP AS
SELECT n, gen_random_uuid() AS id, COALESCE(other.owner_id, %(owner)s) AS owner_id,
       COALESCE(other.owner_id, %(owner)s) || '/' || n / 275 AS lot,
       now() - interval '365 days' * (1 - n / (%(generations)s * 1.0)) AS created_at,
       concat_ws(' ', 'a fox number', n,
           CASE WHEN n %% 2 = 0 THEN 'watercolour' ELSE 'oil' END,
           CASE WHEN hashint4(n) & 255 = 0 THEN 'lantern' END,
           CASE WHEN hashint4(n + 1) & 32767 < 1 THEN 'quokka' END,
           CASE WHEN hashint4(n + 2) & 31 = 0 THEN 'teapot' END,
           CASE WHEN n < %(generations)s * 0.3 THEN 'autumn' END,
           'word' || (hashint4(n + 3) & 127), 'word' || (hashint4(n + 4) & 1023),
           'word' || (hashint4(n + 5) & 8191), 'word' || (hashint4(n + 6) & 65535)) AS prompt,
       CASE WHEN hashint4(n + 7) & 1023 = 0 THEN 'vendor/rare'
            ELSE 'vendor/model-' || n %% 7 END AS model
FROM generate_series(0, %(generations)s - 1) n
LEFT JOIN other ON n %% 11 = 10 AND other.number = n / 11 %% %(others)s;

CREATE TEMPORARY TABLE lot ON COMMIT DROP AS
SELECT lot, gen_random_uuid() AS id, min(owner_id) AS owner_id, count(*) AS size,
       min(created_at) AS created_at
FROM made GROUP BY lot;

INSERT INTO batches_batch (id, owner_id, name, status, priority, settings, style, genre, tags,
                           total_count, completed_count, failed_count, cancelled_count, cost_usd,
                           version, created_at, finished_at)
SELECT id, owner_id, '', 'completed', 3, '{}', '', '', '{}', size, size, 0, 0, 0, 1, created_at,
       created_at
FROM lot;

INSERT INTO batches_generation (id, owner_id, batch_id, index, status, priority, name, custom_id,
                                metadata, prompt, final_prompt, negative_prompt, seed, model,
                                settings, input, provider, progress, attempt_count, retry_count,
                                deleted_image_count, error_code, error_message, cost_usd, version,
                                created_at, finished_at)
SELECT made.id, made.owner_id, lot.id, n, 'completed', 3, '', '', '{}', prompt, prompt, '', 7,
       model, '{}', '{}', 'replicate', 100, 1, 0, 0, '', '', 0, 1, made.created_at,
       made.created_at
FROM made JOIN lot USING (lot);

INSERT INTO batches_image (id, generation_id, owner_id, batch_id, model, search, index, file,
                           thumbnail, preview, format, width, height, size_bytes, sha256, is_saved,
                           tags, review_status, reviewed_at, created_at)
SELECT gen_random_uuid(), id, owner_id, batch_id, model, described || marks, index,
       id || '/' || index, '', '', format, 1024, 1024, 1000000, repeat('0', 64), is_saved, tags,
       review_status, CASE WHEN review_status <> 'pending' THEN created_at END, created_at
FROM (
    SELECT made.id, made.owner_id, lot.id AS batch_id, model, made.created_at, n,
           to_tsvector('english', prompt) AS described
    FROM made JOIN lot USING (lot) ORDER BY n OFFSET 0
) made CROSS JOIN generate_series(0, 3) index CROSS JOIN LATERAL (
    SELECT hashint4(n * 4 + index) & 1023 AS one, hashint4(n * 4 + index + 1) & 1023 AS two,
           hashint4(n * 4 + index + 2) & 32767 AS three
) chance CROSS JOIN LATERAL (
    SELECT CASE WHEN one < 102 THEN 'approved' WHEN one < 204 THEN 'rejected'
                ELSE 'pending' END AS review_status,
           two < 102 AS is_saved,
           CASE WHEN two = 103 THEN 'svg' WHEN (n + index) %% 3 = 0 THEN 'png'
                ELSE 'webp' END AS format,
           array_remove(ARRAY[CASE WHEN three %% 10 < 3 THEN 'best' END,
                              CASE WHEN three / 10 %% 100 = 0 THEN 'sold' END,
                              CASE WHEN three < 2 THEN 'gift' END], NULL) AS tags
) facts CROSS JOIN LATERAL (
    SELECT array_to_tsvector(
        'owner:' || owner_id || ARRAY(SELECT 'tag:' || tag FROM unnest(tags) AS tag)) AS marks
) marks
"""


def run() -> list[Row]:
    with data_folder() as folder, embedded.services(folder, redis=False, durable=False):
        call_command("migrate", verbosity=0)
        return measure()


def measure(own: int = OWN, repetitions: int = REPETITIONS, requests: int = REQUESTS) -> list[Row]:
    [user] = make_users(1)
    began_s = time.monotonic()
    fill(user.id, own)
    queue.settle()
    filled_s = time.monotonic() - began_s
    gallery = _Gallery(user)
    rows = []
    scans: list[str] = []
    used: set[str] = set()
    for group, cases in CASES.items():
        worst = ("", 0.0)
        for name, asked in cases.items():
            for node in gallery.plans(asked) if group != HARDEST else ():
                used.add(node.get("Index Name", ""))
                if node["Node Type"] == "Seq Scan" and node["Relation Name"] == "batches_image":
                    scans.append(f"{group}: {name}")
            series = [gallery.waits_ms(asked, requests) for _ in range(repetitions)]
            worst = max(worst, (name, median_percentile(series, 95)), key=lambda one: one[1])
        rows.append(
            Row(
                f"gallery {group} p95",
                f"95th percentile of the slowest of {len(cases)} ({worst[0]}), a page through the "
                f"web application with {own:,} images of one user; "
                f"median of {repetitions} x {requests} requests",
                worst[1],
                "ms",
                at_most=None if group == HARDEST else BOUND_MS,
            )
        )
    of_images = ", ".join(sorted(name for name in used if name.startswith("image_")))
    rows.append(
        Row(
            "gallery scans",
            f"queries that read the whole table{': ' if scans else ''}{', '.join(scans)}; the "
            f"indexes that served: {of_images}; filled in {filled_s:.0f} s",
            len(scans),
            "queries",
            at_most=0,
        )
    )
    return rows


def fill(owner_id: int, own: int) -> None:
    """Make that many images of a user, and a tenth of it of others."""
    values = {"owner": owner_id, "others": OTHERS, "generations": own * 11 // 40}
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(_FILL, values)


class _Gallery:
    """The gallery of one user, as a client of the API finds it."""

    def __init__(self, user: User) -> None:
        self._client = APIClient(headers={"Authorization": f"Bearer {user.token}"})
        own = Image.objects.filter(owner=user.id).order_by("created_at", "id")
        middle = own[own.count() // 2]
        self._places = {
            "{batch}": str(middle.batch_id),
            "{generation}": str(middle.generation_id),
            "{middle}": middle.created_at.isoformat(),
            "{day}": middle.created_at.replace(hour=23, minute=59, second=59).isoformat(),
            "{month}": own[own.count() * 7 // 12].created_at.isoformat(),
        }
        self._ask({})  # the warm-up

    def waits_ms(self, asked: dict[str, Any], requests: int) -> list[float]:
        """Return how long each request took, the answer included."""
        waits = []
        for _ in range(requests):
            began_s = time.perf_counter()
            self._ask(asked)
            waits.append(1_000 * (time.perf_counter() - began_s))
        return waits

    def plans(self, asked: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the nodes of the plans of all queries for images that it takes."""
        queries: list[tuple[str, Sequence[Any]]] = []

        def keep(
            execute: Callable[..., Any], sql: str, params: Any, many: bool, context: Any
        ) -> Any:
            if "batches_image" in sql:
                queries.append((sql, params))
            return execute(sql, params, many, context)

        with connection.execute_wrapper(keep):
            self._ask(asked)
        nodes: list[dict[str, Any]] = []
        with connection.cursor() as cursor:
            for sql, params in queries:
                cursor.execute(f"EXPLAIN (FORMAT JSON) {sql}", params)
                plan = cursor.fetchone()[0]
                nodes += _nodes((json.loads(plan) if isinstance(plan, str) else plan)[0]["Plan"])
        return nodes

    def _ask(self, asked: dict[str, Any]) -> None:
        values = {
            name: self._places.get(value, value) if isinstance(value, str) else value
            for name, value in asked.items()
        }
        answer = self._client.get(IMAGES, values, headers={"Host": "localhost"})
        assert answer.status_code == 200, answer.content
        assert answer.content


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for part in plan.get("Plans", ()):
        yield from _nodes(part)
