"""Every write of a publication, of the calls that it takes, and of an account at a channel.

    publishing ──► published | publish_failed        publish_failed ──► publishing (its owner asks)

What waits is a row with `due_at`; a message is a hint that names its `turn`. A delivery begins by
moving the turn on, once for any number of copies, and holds the row until `held_until`; everything
that it writes is bound to its turn, but for one thing: the answer to a call that was on record
counts, whoever holds the row by then. All times are the database's.
"""

import json
import re
import time
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Any, NamedTuple

from django.conf import settings
from django.db import connection, transaction
from django.db.models import ExpressionWrapper, F, FloatField, Q, QuerySet
from django.db.models.functions import Coalesce, Extract, Now

from batches import sealing, wake
from batches.intake import Problem, Refused
from batches.models import (
    CallOutcome,
    ChannelAccount,
    ChannelName,
    Image,
    Publication,
    PublicationAttempt,
    PublicationStatus,
    ReviewStatus,
)
from generation.http import HttpClient
from generation.provider import ErrorClass, Failure
from publishing import products
from publishing.channel import CHANGED, Channel, Done, Limits, Step
from publishing.channels import CHANGES_PRODUCT, KEPT_IDS, make_channel

# Whatever a publication waits for, after so long it has failed.
DEADLINE = timedelta(days=1)
# Formats of images that channels can be given; a drawing has no pixels to print.
PUBLISHABLE = ("png", "jpeg", "webp", "avif")
# The part of a limit that may be used at once. The rest comes back over its window, so that no
# window sees more than the limit.
BURST = 0.25
# The step that makes the product, and what its id is called, at every channel.
PRODUCT_STEP, PRODUCT_ID = "product", "product_id"
UNSURE = (CallOutcome.OPEN, CallOutcome.UNKNOWN)
# Of what waits so many are looked at to tell how many are one account's.
WAITING_LIMIT = 1_000
_TITLE_TOKEN = re.compile(r"\{\{|\}\}|\{index\}|[{}]")


class AccountInUse(Exception):
    """An account is needed by what is being published with it."""


# --- Asking -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PublishRequest:
    """What images are to become.

    `{index}` in the title stands for an image's number, from 1, and `{{` and `}}` for braces.
    """

    channel: str
    product_type: str
    title: str
    description: str = ""
    tags: Sequence[str] = ()
    price_usd: Decimal | None = None


class Outcome(StrEnum):
    ACCEPTED = "accepted"
    RETRIED = "retried"  # it had failed before
    EXISTS = "exists"  # nothing is done


class Taken(NamedTuple):
    publication: Publication
    outcome: Outcome


def publish_images(
    *,
    owner_id: int,
    image_ids: Sequence[uuid.UUID],
    asked: PublishRequest,
    at: str = "image_ids.{}",
) -> list[Taken]:
    """Have images published, all or none, in the order of `image_ids`, which differ.

    An image that is at the channel already, or on its way, stays as it is; one that failed is tried
    again as it is asked for now, if what its channel may have of it can be changed. `at` is where
    image number n stands in the request. Raises `Refused`, and `Image.DoesNotExist` when any is
    not the owner's.
    """
    with transaction.atomic():
        problems = _title_problems(asked.title)
        problems += _account_problems(owner_id, asked.channel, asked.product_type)
        images = _locked(owner_id, image_ids)
        problems += [
            Problem(at.format(place), code, detail)
            for place, one in enumerate(image_ids)
            for code, detail in _image_problems(images[one])
        ]
        if problems:
            raise Refused(problems)
        # Nobody adds one meanwhile: the images are locked.
        standing = {
            publication.image_id: publication
            for publication in Publication.objects.filter(
                image__in=image_ids, channel=asked.channel
            ).select_for_update()
        }
        fields = {
            "product_type": asked.product_type,
            "description": asked.description,
            "tags": list(asked.tags),
            "price_usd": asked.price_usd,
        }
        titles = [_title(asked.title, number) for number in range(1, len(image_ids) + 1)]
        made = {
            one: Publication(
                owner_id=owner_id, image_id=one, channel=asked.channel, title=title, **fields
            )
            for one, title in zip(image_ids, titles, strict=True)
            if one not in standing
        }
        retried = {
            one: standing[one]
            for one in image_ids
            if one in standing and standing[one].status == PublicationStatus.PUBLISH_FAILED
        }
        changed = []
        for one, title in zip(image_ids, titles, strict=True):
            if one in retried:
                row, wanted = retried[one], {**fields, "title": title}
                if any(getattr(row, name) != value for name, value in wanted.items()):
                    changed.append(row)
                row.title = title
        begun = _may_be_made(changed)
        if begun and asked.channel not in CHANGES_PRODUCT:
            raise Refused(
                [
                    Problem(at.format(place), "already_made", _already_made(standing[one]))
                    for place, one in enumerate(image_ids)
                    if one in standing and standing[one].pk in begun
                ]
            )
        Publication.objects.bulk_create(made.values())
        _retry(list(retried.values()), begun, **fields)
        found = Publication.objects.in_bulk(
            [one.pk for one in (*made.values(), *standing.values())]
        )
        by_image = {one.image_id: one for one in found.values()}
        if made or retried:
            wake.publish()
    return [
        Taken(
            by_image[one],
            Outcome.ACCEPTED
            if one in made
            else Outcome.RETRIED
            if one in retried
            else Outcome.EXISTS,
        )
        for one in image_ids
    ]


def _title_problems(title: str) -> list[Problem]:
    if not {"{", "}"} & set(_TITLE_TOKEN.findall(title)):
        return []
    detail = "A title may hold {index} and nothing else in braces. Its own braces are {{ and }}."
    return [Problem("title", "unknown_placeholder", detail, ["index"])]


def _title(title: str, number: int) -> str:
    def stand_in(token: re.Match[str]) -> str:
        return str(number) if token[0] == "{index}" else token[0][0]

    return _TITLE_TOKEN.sub(stand_in, title)


def _may_be_made(rows: Sequence[Publication]) -> set[uuid.UUID]:
    """Those of rows that failed whose product is at the channel, or may be."""
    if not rows:
        return set()
    unsure = PublicationAttempt.objects.filter(
        publication__in=[row.pk for row in rows], step=PRODUCT_STEP, outcome__in=UNSURE
    )
    return {
        *unsure.values_list("publication", flat=True),
        *(row.pk for row in rows if row.remote_ids.get(PRODUCT_ID)),
    }


def _already_made(publication: Publication) -> str:
    return (
        f"Its product may be at {publication.channel} as it was asked for before, and is not "
        f"changed there: retry publication {publication.pk} as it is."
    )


def retry_publication(*, publication: Publication) -> bool:
    """Go on with one that failed, from where it was. `False`: it has not. Raises `Refused`."""
    with transaction.atomic():
        problems = _account_problems(
            publication.owner_id, publication.channel, publication.product_type
        )
        try:
            images = _locked(publication.owner_id, [publication.image_id])
        except Image.DoesNotExist:
            problems.append(Problem("image", "image_deleted", "Its image is deleted."))
        else:
            for image in images.values():
                problems += [Problem("image", *found) for found in _image_problems(image)]
        row = Publication.objects.select_for_update().get(pk=publication.pk)
        if row.status != PublicationStatus.PUBLISH_FAILED:
            return False
        if problems:
            raise Refused(problems)
        _retry([row])
        wake.publish()
        return True


def _retry(
    rows: Sequence[Publication], set_anew: Collection[uuid.UUID] = (), **fields: Any
) -> None:
    """Move rows that failed, which the caller has locked, with the titles that they have now.

    What their earlier calls have made is kept, if it is there. Of those that are to be `set_anew`
    the product is changed to what they are now.
    """
    if not rows:
        return
    missed = [
        row
        for row in rows
        if row.pk not in set_anew and _was_missed(row) and row.remote_ids.get(PRODUCT_ID)
    ]
    # Calls of which nothing was heard, about what is made again or was not there any more.
    PublicationAttempt.objects.filter(
        publication__in=[*set_anew, *(row.pk for row in missed)], outcome__in=UNSURE
    ).update(
        outcome=CallOutcome.FAILED,
        error_class=ErrorClass.INTERRUPTED,
        error_message="What it was about is made again, or is gone.",
        finished_at=Now(),
    )
    # A shop that was away for a while has what it had: the product is looked for before another
    # is made.
    for row in missed:
        row.attempt_count += 1
    PublicationAttempt.objects.bulk_create(
        PublicationAttempt(
            publication=row,
            number=row.attempt_count,
            step=PRODUCT_STEP,
            outcome=CallOutcome.UNKNOWN,
            error_class=ErrorClass.NOT_FOUND,
            error_message="The product was not there; it is looked for before it is made again.",
            created_at=row.finished_at or Now(),
            finished_at=row.finished_at,
        )
        for row in missed
    )
    for row in rows:
        is_fresh = row.pk in set_anew or _was_missed(row)
        kept = {CHANGED} if is_fresh else {CHANGED, *KEPT_IDS[row.channel]}
        row.remote_ids = {name: one for name, one in row.remote_ids.items() if name in kept}
        if row.pk in set_anew:
            row.remote_ids[CHANGED] = "1"
        if is_fresh:
            row.remote_url = ""
    Publication.objects.bulk_update(rows, ["title", "remote_ids", "remote_url", "attempt_count"])
    Publication.objects.filter(
        pk__in=[row.pk for row in rows], status=PublicationStatus.PUBLISH_FAILED
    ).update(
        status=PublicationStatus.PUBLISHING,
        retry_count=0,
        crash_count=0,
        error_code="",
        error_message="",
        started_at=Now(),
        due_at=Now(),
        held_until=None,
        finished_at=None,
        turn=F("turn") + 1,
        version=F("version") + 1,
        **fields,
    )


def _was_missed(publication: Publication) -> bool:
    """Whether the channel did not find the shop, or what had been made in it."""
    return publication.error_code == ErrorClass.NOT_FOUND


def _account_problems(owner_id: int, channel: str, product_type: str) -> list[Problem]:
    """What keeps an owner from publishing such a product at a channel.

    The account cannot be deleted before the commit.
    """
    if channel not in ChannelName.values:
        detail = f"There is no channel {channel!r}."
        return [Problem("channel", "unknown_channel", detail, list(ChannelName.values))]
    with connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT stopped_by, options::text FROM batches_channelaccount
            WHERE owner_id = %s AND channel = %s FOR KEY SHARE
            """,
            [owner_id, channel],
        )
        row = cursor.fetchone()
    if row is None:
        return [Problem("channel", "no_account", f"You have no account at {channel} here.")]
    stopped_by, options = row
    problems = []
    if stopped_by:
        detail = f"Your account at {channel} is stopped ({stopped_by}): give its credentials anew."
        problems.append(Problem("channel", "account_stopped", detail))
    if product_type not in (allowed := products.product_types(channel, json.loads(options))):
        detail = f"{channel} has no product type {product_type!r}."
        problems.append(Problem("product_type", "unknown_product_type", detail, list(allowed)))
    return problems


def _locked(owner_id: int, ids: Sequence[uuid.UUID | None]) -> dict[uuid.UUID, Image]:
    """An owner's images, which nobody can review or delete before the commit."""
    own = Image.objects.owned_by(owner_id).filter(pk__in=[one for one in ids if one])
    images = {image.pk: image for image in own.order_by("pk").select_for_update(no_key=True)}
    if len(images) < len(set(ids)):
        raise Image.DoesNotExist
    return images


def _image_problems(image: Image) -> list[tuple[str, str]]:
    problems = []
    if image.review_status != ReviewStatus.APPROVED:
        detail = f"Only approved images are published; {image.pk} is {image.review_status}."
        problems.append(("not_approved", detail))
    if image.format not in PUBLISHABLE:
        detail = f"No channel takes {image.format}; {image.pk} is such an image."
        problems.append(("unsupported_format", detail))
    return problems


# --- Accounts -----------------------------------------------------------------------------------


def set_account(
    *, owner_id: int, channel: str, credentials: Mapping[str, str], options: Mapping[str, Any]
) -> tuple[ChannelAccount, bool]:
    """Give an account, or give it anew; and whether it is the first. What waited for it goes on."""
    with transaction.atomic():
        account, is_new = ChannelAccount.objects.update_or_create(
            owner_id=owner_id,
            channel=channel,
            defaults={
                "sealed_credentials": sealing.seal(credentials),
                "options": dict(options),
                "stopped_by": "",
                "blocked_until": None,
                "updated_at": Now(),
            },
        )
        _go_on(account)
    account.refresh_from_db()
    return account, is_new


def resume_account(*, account: ChannelAccount) -> None:
    """Let an account go on that was stopped: its credentials are good after all."""
    with transaction.atomic():
        if (
            ChannelAccount.objects.filter(pk=account.pk)
            .exclude(stopped_by="")
            .update(stopped_by="")
        ):
            _go_on(account)


def _go_on(account: ChannelAccount) -> None:
    Publication.objects.filter(
        owner=account.owner_id,
        channel=account.channel,
        status=PublicationStatus.PUBLISHING,
        held_until=None,
    ).update(due_at=Now())
    wake.publish()


def stop_account(*, account: ChannelAccount, error_class: str) -> None:
    """Send nothing more with an account until its credentials are given anew.

    Unless they just were: then it was with the old ones that something failed.
    """
    ChannelAccount.objects.filter(
        pk=account.pk, sealed_credentials=account.sealed_credentials, options=account.options
    ).update(stopped_by=error_class)


def block_account(*, account: ChannelAccount, seconds: float) -> None:
    """Send nothing with an account for so long."""
    until = Now() + timedelta(seconds=seconds)
    ChannelAccount.objects.filter(
        Q(blocked_until=None) | Q(blocked_until__lt=until), pk=account.pk
    ).update(blocked_until=until)


def open_channel(account: ChannelAccount, *, http: HttpClient) -> Channel | Failure:
    """An account's channel; a failure of class AUTH when it cannot be used as it is stored."""
    credentials = sealing.unseal(account.sealed_credentials)
    if credentials is None:
        message = "The credentials cannot be read any more: give them anew."
        return Failure(ErrorClass.AUTH, message)
    try:
        return make_channel(
            account.channel,
            credentials,
            account.options,
            http=http,
            printify_base_url=settings.PRINTIFY_BASE_URL,
            shopify_base_url=settings.SHOPIFY_BASE_URL,
            shopify_api_version=settings.SHOPIFY_API_VERSION,
        )
    except ValueError as error:
        return Failure(ErrorClass.AUTH, f"The account's options are not accepted: {error}")


def delete_account(*, account: ChannelAccount) -> None:
    """Forget an account with its credentials. Raises `AccountInUse`."""
    with transaction.atomic():
        # Whoever publishes meanwhile waits for this, see `_account_problems`.
        ChannelAccount.objects.select_for_update().filter(pk=account.pk).first()
        if Publication.objects.filter(
            owner=account.owner_id, channel=account.channel, status=PublicationStatus.PUBLISHING
        ).exists():
            raise AccountInUse
        ChannelAccount.objects.filter(pk=account.pk).delete()


class Allowance(NamedTuple):
    """Whether calls may be made now; else in how many seconds, or not before somebody acts.

    So much comes back every `every_s` seconds: the next of those that wait is to wait as much
    longer.
    """

    is_given: bool
    wait_s: float = 0.0
    stopped_by: str = ""
    every_s: float = 0.0


def take_allowance(
    *, account: ChannelAccount, limits: Limits, calls: int, publications: int = 0
) -> Allowance:
    """Take what calls need out of an account's two buckets, both or none."""
    with connection.cursor() as cursor:
        cursor.execute(
            """
            WITH account AS (
                SELECT id, stopped_by,
                       LEAST(%(call_burst)s, COALESCE(
                           call_tokens + %(call_rate)s * passed_s, %(call_burst)s)) AS calls,
                       LEAST(%(publish_burst)s, COALESCE(
                           publish_tokens + %(publish_rate)s * passed_s, %(publish_burst)s))
                           AS publications,
                       COALESCE(extract(epoch FROM blocked_until - statement_timestamp()), 0)
                           AS blocked_s
                FROM (
                    SELECT *, extract(epoch FROM statement_timestamp() - refilled_at)::float8
                              AS passed_s
                    FROM batches_channelaccount WHERE id = %(id)s FOR NO KEY UPDATE
                ) locked
            ), taken AS (
                UPDATE batches_channelaccount
                SET call_tokens = account.calls - %(calls)s,
                    publish_tokens = account.publications - %(publications)s,
                    refilled_at = statement_timestamp()
                FROM account
                WHERE batches_channelaccount.id = account.id AND account.stopped_by = ''
                  AND blocked_s <= 0 AND account.calls >= %(calls)s
                  AND account.publications >= %(publications)s
                RETURNING 1
            )
            SELECT EXISTS (SELECT FROM taken), stopped_by,
                   GREATEST(blocked_s, (%(calls)s - calls) / %(call_rate)s,
                            (%(publications)s - publications) / %(publish_rate)s, 0)::float8,
                   GREATEST(%(calls)s / %(call_rate)s,
                            CASE WHEN publications < %(publications)s
                                THEN %(publications)s / %(publish_rate)s END)::float8
            FROM account
            """,
            {
                "id": account.pk,
                "calls": calls,
                "publications": publications,
                "call_burst": max(BURST * limits.calls_per_minute, calls),
                "call_rate": (1 - BURST) * limits.calls_per_minute / 60,
                "publish_burst": max(BURST * limits.publications, 1.0),
                "publish_rate": (1 - BURST) * limits.publications / limits.publications_window_s,
            },
        )
        row = cursor.fetchone()
    return Allowance(is_given=row[0], stopped_by=row[1], wait_s=row[2], every_s=row[3])


def waiting_count(account: ChannelAccount) -> int:
    """How many publications of an account wait, among the `WAITING_LIMIT` that are due next."""
    with connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT count(*) FILTER (WHERE owner_id = %s AND channel = %s)
            FROM (
                SELECT owner_id, channel FROM batches_publication
                WHERE status = 'publishing' ORDER BY due_at LIMIT %s
            ) due
            """,
            [account.owner_id, account.channel, WAITING_LIMIT],
        )
        (count,) = cursor.fetchone()
    return int(count)


# --- Deliveries ---------------------------------------------------------------------------------


class Due(NamedTuple):
    """A message to be sent. `crash_count`: how many deliveries have died of it."""

    publication_id: uuid.UUID
    turn: int
    crash_count: int


def take_due(limit: int) -> list[Due]:
    """What is to be worked on now; each is due again if its message is lost.

    One that a delivery held has lost it: its process has died, or the way to the database.
    """
    with connection.cursor() as cursor:
        cursor.execute(
            """
            WITH due AS (
                SELECT id, held_until IS NOT NULL AS is_held FROM batches_publication
                WHERE status = 'publishing' AND due_at <= statement_timestamp()
                ORDER BY due_at LIMIT %s FOR NO KEY UPDATE SKIP LOCKED
            )
            UPDATE batches_publication publication
            SET due_at = statement_timestamp() + make_interval(secs => %s), held_until = NULL,
                crash_count = crash_count + due.is_held::int
            FROM due WHERE publication.id = due.id
            RETURNING publication.id, turn, crash_count
            """,
            [limit, settings.LEASE_SECONDS],
        )
        return [Due(*row) for row in cursor.fetchall()]


def put_back(*, publication_id: str, turn: int) -> None:
    """Have one worked on later whose message came when there was no room for it."""
    Publication.objects.filter(
        pk=publication_id, turn=turn, status=PublicationStatus.PUBLISHING, held_until=None
    ).update(due_at=Now())


def renew(turns: dict[uuid.UUID, int]) -> None:
    """Prolong what deliveries hold that are still at work; turns by publication."""
    with connection.cursor() as cursor:
        cursor.execute(
            """
            UPDATE batches_publication publication
            SET held_until = statement_timestamp() + make_interval(secs => %(seconds)s),
                due_at = statement_timestamp() + make_interval(secs => %(seconds)s)
            FROM unnest(%(ids)s::uuid[], %(turns)s::int[]) AS held(id, turn)
            WHERE publication.id = held.id AND publication.turn = held.turn
              AND held_until IS NOT NULL AND status = 'publishing'
            """,
            {
                "seconds": settings.LEASE_SECONDS,
                "ids": list(turns),
                "turns": list(turns.values()),
            },
        )


@dataclass(frozen=True, slots=True)
class Work:
    """What one delivery has to work on.

    `attempt` is a call of which it is not known what came of it; `settled_s` is for how long that
    can be seen at the channel, negative while it may still come. `left_s` is until the deadline.
    """

    publication: Publication
    image: Image
    account: ChannelAccount
    attempt: PublicationAttempt | None
    settled_s: float
    left_s: float

    @property
    def turn(self) -> int:
        return self.publication.turn


def take_turn(publication_id: str, turn: int) -> Work | None:
    """Claim a publication for one delivery. `None`: it is not, or no longer, its turn."""
    with connection.cursor() as cursor:
        cursor.execute(
            """
            UPDATE batches_publication
            SET turn = turn + 1,
                held_until = statement_timestamp() + make_interval(secs => %(seconds)s),
                due_at = statement_timestamp() + make_interval(secs => %(seconds)s)
            WHERE id = %(id)s AND turn = %(turn)s AND status = 'publishing'
            RETURNING extract(epoch FROM started_at + make_interval(secs => %(deadline_s)s)
                      - statement_timestamp())::float8
            """,
            {
                "seconds": settings.LEASE_SECONDS,
                "id": publication_id,
                "turn": turn,
                "deadline_s": DEADLINE.total_seconds(),
            },
        )
        row = cursor.fetchone()
    if row is None:
        return None
    publication = Publication.objects.select_related("image").get(pk=publication_id)
    if publication.turn != turn + 1:  # claimed anew already, so late are we
        return None
    # Neither can be deleted while something is published.
    assert publication.image is not None
    account = ChannelAccount.objects.get(owner=publication.owner_id, channel=publication.channel)
    attempt = (
        PublicationAttempt.objects.filter(
            publication=publication, number=publication.attempt_count, outcome__in=UNSURE
        )
        .annotate(
            age_s=ExpressionWrapper(
                Extract(Now() - Coalesce("finished_at", "created_at"), "epoch"),
                output_field=FloatField(),
            )
        )
        .first()
    )
    settled_s = 0.0
    if attempt is not None:
        settled_s = attempt.age_s - _settles_within_s(attempt)
    return Work(publication, publication.image, account, attempt, settled_s, row[0])


def _settles_within_s(attempt: PublicationAttempt) -> float:
    """How long after a call what came of it can be seen at the channel, if anything did.

    A channel may still be at work on a call that was given up here, or whose answer was lost on
    the way. Of one whose process died, the process may be held up only, without a database: it
    sends nothing after a while, see `may_send`.
    """
    is_open = attempt.outcome == CallOutcome.OPEN
    return float(settings.CHANNEL_SETTLE_SECONDS + (settings.LEASE_SECONDS if is_open else 0))


def may_send(begun_at_s: float) -> bool:
    """Whether a call that was put on record at that moment, by `time.monotonic`, may still go."""
    return time.monotonic() - begun_at_s < min(10.0, 0.4 * settings.LEASE_SECONDS)


def begin_attempt(*, work: Work, step: Step) -> PublicationAttempt | None:
    """Put a call on record, before it is made. `None`: somebody else has the publication now."""
    with transaction.atomic():
        if not _held(work).update(attempt_count=F("attempt_count") + 1):
            return None
        row = Publication.objects.only("attempt_count").get(pk=work.publication.pk)
        return PublicationAttempt.objects.create(
            publication=row, number=row.attempt_count, step=step.name
        )


def record_step(*, work: Work, done: Done, attempt: PublicationAttempt | None = None) -> bool:
    """Keep what a step has come to. `False`: it is not this delivery's any more.

    With an attempt, its answer is kept whoever holds the publication; once.
    """
    with transaction.atomic():
        if attempt is not None:
            if not _end(attempt, CallOutcome.SUCCEEDED, raw=done.raw):
                return False
            rows: QuerySet[Publication] = Publication.objects.filter(pk=work.publication.pk)
        else:
            rows = _held(work)
        if not rows.update(
            retry_count=0, crash_count=0, version=F("version") + 1, **_url(done.url)
        ):
            return False
        with connection.cursor() as cursor:
            cursor.execute(
                "UPDATE batches_publication SET remote_ids = remote_ids || %s::jsonb WHERE id = %s",
                [json.dumps(dict(done.remote_ids)), work.publication.pk],
            )
    return True


def _url(url: str) -> dict[str, str]:
    longest = Publication._meta.get_field("remote_url").max_length or 0
    return {"remote_url": url} if url and len(url) <= longest else {}


def end_attempt(*, attempt: PublicationAttempt, outcome: CallOutcome, failure: Failure) -> bool:
    """Note that a call came to nothing, or that nobody knows. `False`: it is known by now."""
    return _end(
        attempt,
        outcome,
        error_class=failure.error_class,
        error_message=failure.message,
        provider_code=failure.provider_code[:100],
        raw=failure.answer,
    )


def _end(attempt: PublicationAttempt, outcome: CallOutcome, **fields: Any) -> bool:
    """Whoever else found out meanwhile what came of it was faster."""
    return bool(
        PublicationAttempt.objects.filter(pk=attempt.pk, outcome__in=UNSURE).update(
            outcome=outcome, finished_at=Now(), **fields
        )
    )


def put_off(*, work: Work, seconds: float, counts: bool = False) -> bool:
    """Let go of a publication until later; `counts` a failure. `False`: it is not ours any more."""
    retried = {"retry_count": F("retry_count") + 1} if counts else {}
    return bool(
        _held(work).update(due_at=Now() + timedelta(seconds=seconds), held_until=None, **retried)
    )


def complete_publication(*, work: Work) -> bool:
    """publishing ──► published."""
    return bool(
        _held(work).update(
            status=PublicationStatus.PUBLISHED,
            published_at=Now(),
            finished_at=Now(),
            held_until=None,
            version=F("version") + 1,
        )
    )


def fail_publication(*, publication_id: uuid.UUID, turn: int, code: str, message: str) -> bool:
    """publishing ──► publish_failed, by whoever knows its turn. What it has at the channel stays.

    A call of which nobody knows what came of it is looked up first if it is tried again.
    """
    with transaction.atomic():
        failed = Publication.objects.filter(
            pk=publication_id, turn=turn, status=PublicationStatus.PUBLISHING
        ).update(
            status=PublicationStatus.PUBLISH_FAILED,
            error_code=code,
            error_message=message,
            finished_at=Now(),
            held_until=None,
            version=F("version") + 1,
        )
        if failed:
            PublicationAttempt.objects.filter(
                publication=publication_id, outcome=CallOutcome.OPEN
            ).update(
                outcome=CallOutcome.UNKNOWN,
                error_class=ErrorClass.TIMEOUT_UNKNOWN,
                error_message="Its process died while it waited for the answer.",
                finished_at=Now(),
            )
    return bool(failed)


def _held(work: Work) -> QuerySet[Publication]:
    """The row, if this delivery still holds it: others take over what has not been prolonged."""
    return Publication.objects.filter(
        pk=work.publication.pk,
        turn=work.turn,
        status=PublicationStatus.PUBLISHING,
        held_until__isnull=False,
    )
