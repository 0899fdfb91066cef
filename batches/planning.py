"""Plans and the pictures that they need: of a request that is refused, nothing is stored."""

import contextlib
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping

from batches import references
from batches.intake import Plan, Problem, Refused, fitting, sources_of, with_references
from batches.lifecycle import NewGeneration
from batches.references import Collected, LookedUp, Refusal, Wanted


class Planned:
    """Generations to be made, and their pictures in storage."""

    def __init__(self, generations: Collection[NewGeneration], pictures: Collected) -> None:
        self._generations = generations
        self._pictures = pictures

    @contextlib.contextmanager
    def settled(self) -> Iterator[tuple[list[NewGeneration], Mapping[Wanted, uuid.UUID]]]:
        """The generations with their references, which are there until the block ends."""
        with self._pictures.added() as added:
            ids = {one: each.reference.pk for one, each in added.items()}
            yield [with_references(new, ids) for new in self._generations], ids


@contextlib.contextmanager
def planned(
    owner_id: int,
    plan: Collection[Plan | Problem],
    places: Mapping[str, Wanted],
) -> Iterator[Planned]:
    """Take in the pictures of a plan, unless it has problems. Not to be called in a transaction.

    `places` are the pictures by where they stand in the request. Raises `Refused`.
    """
    problems, plans = _parted(plan)
    needed = [one for each in plans for one in sources_of(each.settings)]
    looked_up = references.look_up(owner_id, [*places.values(), *needed])
    with collected(looked_up, places, problems) as pictures:
        too_large, fitted = _parted(fitting(each, pictures.size_bytes) for each in plans)
        if too_large:
            raise Refused(list({one.field: one for one in too_large}.values()))
        yield Planned(fitted, pictures)


def _parted(plan: Iterable[Plan | Problem]) -> tuple[list[Problem], list[Plan]]:
    answers = list(plan)
    return (
        [one for one in answers if isinstance(one, Problem)],
        [one for one in answers if isinstance(one, Plan)],
    )


@contextlib.contextmanager
def collected(
    looked_up: LookedUp, places: Mapping[str, Wanted], problems: Collection[Problem] = ()
) -> Iterator[Collected]:
    """Take in pictures, if there are no problems so far. Raises `Refused`."""

    def at_their_places(refusals: Mapping[Wanted, Refusal]) -> list[Problem]:
        named = [Problem(place, *refusals[one]) for place, one in places.items() if one in refusals]
        return named or [Problem("settings.references", *one) for one in refusals.values()]

    if told := [*problems, *at_their_places(looked_up.refusals)]:
        raise Refused(told)
    with references.collect(looked_up) as pictures:
        if not isinstance(pictures, Collected):
            raise Refused(at_their_places(pictures))
        yield pictures
