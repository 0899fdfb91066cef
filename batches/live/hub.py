"""The hub: follows batches in the database for all clients of a process.

Redis tells what has changed (`wake.NEWS`), which is a hint: it says when to look. Once a second
the hub looks in any case, so a hint that is lost, or a Redis that is away, costs a second and
never an event. One look is for all that are followed, in a thread of its own, and not more than
three queries however many clients there are.

Everything else runs on the event loop, and nobody is waited for: a client takes what it is told
into a queue of its own.
"""

import asyncio
import contextlib
import logging
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, TypeVar

from django.conf import settings
from django.db import close_old_connections
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from batches import wake
from batches.database import DATABASE_AWAY, reason
from batches.live.credentials import Credentials, still_valid
from batches.live.news import (
    BatchNews,
    Message,
    News,
    Overview,
    Single,
    read_first,
    read_news,
    read_overview,
)
from batches.live.pace import Pace

logger = logging.getLogger(__name__)

# A batch is told of so often at most, and what a user has is looked for.
FLUSH_EVERY_S = 0.2
# Hints that come together are looked after together.
GATHER_S = 0.01
LOOK_EVERY_S = 1.0
# An event may be seen so much later than others with a higher id.
OVERLAP_S = 10.0
CREDENTIALS_EVERY_S = 60.0
MAX_CLIENTS_PER_USER = 200
# For who comes, beside the one that looks for all.
READERS = 2
RECONNECT_S = 0.5
# Of a Redis that says nothing: asked for a sign of life, and after as long again given up.
SILENCE_S = 5.0

T = TypeVar("T")


class Client(Protocol):
    """One that is told. Neither call waits for anything."""

    def tell(self, messages: Sequence[str]) -> None: ...

    def end(self, code: int) -> None: ...


class Closing:
    """Why the server ends a connection."""

    GONE = 1000  # what it followed is deleted
    BAD_MESSAGE = 4400
    UNAUTHENTICATED = 4401
    NOT_FOUND = 4404
    TOO_MANY = 4429
    TRY_LATER = 1013


@dataclass(eq=False, slots=True)
class _Track:
    """A batch that is followed, as it was last told. `followers` of it alone, and which version
    they were told first. `is_untold`: to who follows its owner, who may have missed some of it.
    """

    owner_id: int
    version: int
    followers: dict[Client, int] = field(default_factory=dict)
    is_untold: bool = False
    has_ended: bool = False
    is_gone: bool = False


@dataclass(eq=False, slots=True)
class _Watch:
    """Who follows a whole user. Clients with the versions of the batches that they were told
    first; single generations that were told, by their place in the log."""

    clients: dict[Client, dict[uuid.UUID, int]] = field(default_factory=dict)
    singles: set[int] = field(default_factory=set)


class Hub:
    """Begins to work when it is first asked for something, on the loop that runs then."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._tracks: dict[uuid.UUID, _Track] = {}
        self._tracks_of: defaultdict[int, set[uuid.UUID]] = defaultdict(set)
        self._watches: dict[int, _Watch] = {}
        self._awaited: dict[uuid.UUID, set[asyncio.Future[None]]] = defaultdict(set)
        self._clients: dict[Client, Credentials] = {}
        self._per_user: Counter[int] = Counter()
        self._pace: Pace[uuid.UUID] = Pace(FLUSH_EVERY_S)
        # Users of whom something is new; and those whom somebody begins to follow, who do not rest.
        self._user_pace: Pace[int] = Pace(FLUSH_EVERY_S)
        self._stirred: set[int] = set()
        self._woken = asyncio.Event()
        self._looked_s = clock()
        self._is_database_away = False
        self._looker = ThreadPoolExecutor(1, "live-look")
        self._readers = ThreadPoolExecutor(READERS, "live-read")
        self._tasks: list[asyncio.Task[None]] = []

    # --- Who is told ------------------------------------------------------------------------------

    async def read(self, function: Callable[[], T]) -> T:
        """Run what reads the database for one client. Raises what that raises."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, _in_thread, function)

    def admit(self, client: Client, credentials: Credentials) -> bool:
        """Take a client in; `False`: its user has too many already."""
        if self._per_user[credentials.user_id] >= MAX_CLIENTS_PER_USER:
            return False
        self._clients[client] = credentials
        self._per_user[credentials.user_id] += 1
        self._start()
        return True

    async def follow(
        self, client: Client, *, owner_id: int, batch_id: uuid.UUID, since: int | None
    ) -> bool:
        """Tell a client of one batch from now on; `False`: its user has no such batch.

        It begins with what `read_first` says.
        """
        read = partial(read_first, owner_id=owner_id, batch_id=batch_id, since=since)
        while first := await self.read(read):
            track = self._tracks.get(batch_id)
            if track is None:
                track = self._track(owner_id, batch_id, first.version)
            if first.version < track.version:
                continue  # the others were told of something that this has not seen
            if client in self._clients:
                track.followers[client] = first.version
                client.tell(first.messages)
            self._drop_unless_followed(batch_id)
            return True
        return False

    def _track(self, owner_id: int, batch_id: uuid.UUID, version: int) -> _Track:
        """Begin to follow a batch of which somebody has just seen that version."""
        is_untold = owner_id in self._watches
        track = self._add(owner_id, batch_id, version)
        track.is_untold = is_untold
        if is_untold:
            self._stir(owner_id)
        # For what was told while nobody listened.
        self._look_soon(batch_id)
        return track

    def _add(self, owner_id: int, batch_id: uuid.UUID, version: int) -> _Track:
        track = self._tracks[batch_id] = _Track(owner_id, version)
        self._tracks_of[owner_id].add(batch_id)
        return track

    def _drop(self, batch_id: uuid.UUID) -> None:
        owner_id = self._tracks.pop(batch_id).owner_id
        self._tracks_of[owner_id].discard(batch_id)
        if not self._tracks_of[owner_id]:
            del self._tracks_of[owner_id]

    async def watch(self, client: Client, *, owner_id: int) -> None:
        """Tell a client of all that a user has from now on. It begins with what is open."""
        read = partial(read_overview, owner_id=owner_id, lookback_s=self._lookback_s())
        overview = await self.read(read)
        while not self._knows_no_more_than(overview):
            overview = await self.read(read)
        if client not in self._clients:
            return
        watch = self._watches.get(owner_id)
        if watch is None:
            watch = self._watches[owner_id] = _Watch()
            # What has happened before is not told.
            watch.singles = {one.event_id for one in overview.singles}
            for found in overview.found:
                if found.batch_id not in self._tracks:
                    self._add(owner_id, found.batch_id, found.last_version)
        for batch_id, version in overview.versions.items():
            if batch_id not in self._tracks:
                self._track(owner_id, batch_id, version)
        watch.clients[client] = dict(overview.versions)
        self._stir(owner_id)
        client.tell([overview.message])

    def _knows_no_more_than(self, overview: Overview) -> bool:
        return all(
            batch_id not in self._tracks or self._tracks[batch_id].version <= version
            for batch_id, version in overview.versions.items()
        )

    def leave(self, client: Client) -> None:
        """Tell it nothing more. Nothing happens when it has left already."""
        credentials = self._clients.pop(client, None)
        if credentials is None:
            return
        user_id = credentials.user_id
        self._per_user[user_id] -= 1
        if not self._per_user[user_id]:
            del self._per_user[user_id]
        watch = self._watches.get(user_id)
        if watch is not None and watch.clients.pop(client, None) is not None and not watch.clients:
            del self._watches[user_id]
        for batch_id in list(self._tracks_of.get(user_id, ())):
            self._tracks[batch_id].followers.pop(client, None)
            self._drop_unless_followed(batch_id)

    def _drop_unless_followed(self, batch_id: uuid.UUID) -> None:
        track = self._tracks.get(batch_id)
        if track and not track.followers and track.owner_id not in self._watches:
            self._drop(batch_id)

    async def ended(self, subject: uuid.UUID, timeout_s: float) -> bool:
        """Wait until a batch or a generation is open no more; `False`: it still was."""
        self._start()
        end = asyncio.get_running_loop().create_future()
        self._awaited[subject].add(end)
        # It may have ended before anybody listened.
        self._look_soon(subject)
        try:
            async with asyncio.timeout(timeout_s):
                await end
        except TimeoutError:
            return False
        finally:
            self._awaited[subject].discard(end)
            if not self._awaited[subject]:
                del self._awaited[subject]
        return True

    # --- What is new ------------------------------------------------------------------------------

    def _start(self) -> None:
        if not self._tasks:
            self._looked_s = self._clock()
            work = (self._look_for_ever(), self._listen_for_ever(), self._check_for_ever())
            self._tasks = [asyncio.create_task(one) for one in work]

    def _look_soon(self, subject: uuid.UUID) -> None:
        self._pace.note(subject, self._clock())
        self._woken.set()

    def _hear(self, told: bytes) -> None:
        """Take a hint; one that nobody asked for, or that cannot be read, is none."""
        try:
            owner, _, subject = told.decode().partition(" ")
            owner_id, one = int(owner), uuid.UUID(subject)
        except ValueError:
            return
        if one in self._tracks or one in self._awaited:
            self._look_soon(one)
        if owner_id in self._watches:
            self._user_pace.note(owner_id, self._clock())
            self._woken.set()

    def _stir(self, owner_id: int) -> None:
        self._stirred.add(owner_id)
        self._woken.set()

    def _lookback_s(self) -> float:
        return self._clock() - self._looked_s + OVERLAP_S

    async def _look_for_ever(self) -> None:
        next_look_s = self._clock()
        while True:
            due_s = min(next_look_s, self._pace.next_s, self._user_pace.next_s)
            await self._rest(0 if self._stirred else due_s - self._clock())
            now_s = self._clock()
            is_look = now_s >= next_look_s
            due, hinted = self._pace.take(now_s), self._user_pace.take(now_s)
            if not (is_look or due or hinted or self._stirred):
                continue
            stirred, self._stirred = self._stirred | hinted, set()
            for one in hinted:
                self._user_pace.told(one, now_s)
            if is_look:
                next_look_s = now_s + LOOK_EVERY_S
            try:
                await self._look(due, stirred, for_all=is_look)
            except DATABASE_AWAY as error:
                self._note_database(error)
                next_look_s = min(next_look_s, self._clock() + RECONNECT_S)
            except Exception:
                # Whatever it is, it must not end all news for good; the next look is for all.
                logger.exception("looking for news failed")
            else:
                self._note_database(None)
            await asyncio.sleep(GATHER_S)

    async def _rest(self, duration_s: float) -> None:
        if duration_s > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(duration_s):
                    await self._woken.wait()
        self._woken.clear()

    def _note_database(self, error: BaseException | None) -> None:
        if error is not None and not self._is_database_away:
            logger.warning("no live events while the database is away: %s", reason(error))
        self._is_database_away = error is not None

    async def _look(
        self, due: Collection[uuid.UUID], stirred: Collection[int], *, for_all: bool
    ) -> None:
        """Read what is new of what is due, of users of whom something is, or of all; tell it."""
        began_s = self._clock()
        chosen = self._tracks.keys() if for_all else self._tracks.keys() & due
        asked = {one for one in chosen if not self._tracks[one].is_gone}
        for one in self._pace.resting(asked, began_s):
            asked.discard(one)
            self._pace.note(one, began_s)
        # As they are now: who comes during the look is not read.
        watches = {
            owner_id: watch
            for owner_id, watch in self._watches.items()
            if for_all or owner_id in stirred
        }
        awaited = self._awaited.keys() if for_all else self._awaited.keys() & due
        news = News()
        if asked or watches or awaited:
            untold = {
                one: track
                for one, track in self._tracks.items()
                if track.is_untold and track.owner_id in watches
            }
            read = partial(
                read_news,
                owner_ids=list(watches),
                lookback_s=self._lookback_s(),
                known={one: track.version for one, track in self._tracks.items()},
                untold=untold,
                asked=asked,
                awaited=list(awaited),
            )
            loop = asyncio.get_running_loop()
            news = await loop.run_in_executor(self._looker, _in_thread, read)
            self._tell(news)
            for track in untold.values():
                track.is_untold = False
        if for_all:
            self._looked_s = began_s
            self._pace.forget(began_s)
            self._user_pace.forget(began_s)
            self._forget(news, watches)

    def _tell(self, news: News) -> None:
        owners = {one.batch_id: one.owner_id for one in news.found}
        for one in news.ended:
            for end in self._awaited.get(one, ()):
                if not end.done():
                    end.set_result(None)
        for batch in news.batches:
            self._tell_of_batch(batch, owners.get(batch.id))
        for single in news.singles:
            self._tell_of_single(single)
        for one in news.later:
            self._pace.note(one, self._clock())

    def _tell_of_batch(self, batch: BatchNews, owner_id: int | None) -> None:
        track = self._tracks.get(batch.id)
        if track is None:
            if owner_id not in self._watches:
                return  # all who followed it have left
            track = self._add(owner_id, batch.id, 0)
        elif track.is_gone or (batch.version <= track.version and not track.is_untold):
            return
        track.version, track.is_untold = batch.version, False
        track.has_ended, track.is_gone = batch.has_ended, batch.is_gone
        self._pace.told(batch.id, self._clock())
        for client, told in list(track.followers.items()):
            _tell_since(client, told, batch.messages)
            if batch.is_gone:
                client.end(Closing.GONE)
        watch = self._watches.get(track.owner_id)
        for client, told_first in list(watch.clients.items()) if watch else ():
            _tell_since(client, told_first.get(batch.id, 0), batch.messages)
        if batch.is_gone:
            track.followers.clear()
            self._drop_unless_followed(batch.id)

    def _tell_of_single(self, single: Single) -> None:
        watch = self._watches.get(single.owner_id)
        if watch is None or single.event_id in watch.singles:
            return
        watch.singles.add(single.event_id)
        for client in list(watch.clients):
            client.tell([single.message.text])

    def _forget(self, news: News, watches: Mapping[int, _Watch]) -> None:
        """Drop what nobody follows by itself, once the log no longer tells of it.

        `watches` are those that `news` was read for: of who has come since, it says nothing.
        """
        recent = {one.batch_id for one in news.found}
        singles = {one.event_id for one in news.singles}
        for owner_id, watch in watches.items():
            if self._watches.get(owner_id) is not watch:
                continue
            watch.singles &= singles
            for batch_id in list(self._tracks_of.get(owner_id, ())):
                track = self._tracks[batch_id]
                if track.has_ended and not track.followers and batch_id not in recent:
                    self._drop(batch_id)

    # --- Redis ------------------------------------------------------------------------------------

    async def _listen_for_ever(self) -> None:
        is_away = False
        while not _is_cancelled():
            try:
                async with self._connected() as redis, redis.pubsub() as channel:
                    await channel.subscribe(wake.NEWS)
                    is_awaited = False
                    while not _is_cancelled():
                        message = await channel.get_message(timeout=SILENCE_S)
                        if message is not None:
                            is_away = is_awaited = False
                            if message["type"] == "message":
                                for told in message["data"].splitlines():
                                    self._hear(told)
                        elif is_awaited:
                            raise RedisError(f"no answer in {SILENCE_S:.0f} s")
                        else:
                            await channel.ping()
                            is_awaited = True
            except (RedisError, OSError) as error:
                if not is_away:
                    logger.warning("broker unavailable, events are up to a second late: %s", error)
                is_away = True
            except Exception:
                logger.exception("listening for news failed")
            await asyncio.sleep(RECONNECT_S)

    def _connected(self) -> Redis:
        return Redis.from_url(
            settings.REDIS_URL,
            socket_connect_timeout=2,
            # Of what is sent; what is awaited has a time of its own.
            socket_timeout=2,
            retry=Retry(NoBackoff(), 0),
        )

    # --- Credentials ------------------------------------------------------------------------------

    async def _check_for_ever(self) -> None:
        while True:
            await asyncio.sleep(CREDENTIALS_EVERY_S)
            held = set(self._clients.values())
            try:
                valid = await self.read(partial(still_valid, held)) if held else held
            except DATABASE_AWAY:
                continue  # said already, and looked at again
            except Exception:
                logger.exception("checking credentials failed")
                continue
            gone = held - valid
            for client, credentials in list(self._clients.items()):
                if credentials in gone:
                    client.end(Closing.UNAUTHENTICATED)


def _tell_since(client: Client, version: int, messages: Iterable[Message]) -> None:
    if texts := [one.text for one in messages if one.version > version]:
        client.tell(texts)


def _is_cancelled() -> bool:
    """redis-py swallows it when a cancellation comes while it connects."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _in_thread(function: Callable[[], T]) -> T:
    """With a connection that is usable, which is kept for the next call if it still is then."""
    close_old_connections()
    try:
        return function()
    finally:
        close_old_connections()
