"""Plans and the pictures that they need: of a request that is refused, nothing is stored."""

import contextlib
import uuid
from collections import defaultdict
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


Planning = Collection[Plan | Problem]
# Pictures by where they stand in a request.
Places = Mapping[str, Wanted]


def checked(owner_id: int, planning: Planning, places: Places) -> list[Plan]:
    """The plans, as far as can be told without fetching or storing anything. Raises `Refused`."""
    problems, plans = _parted(planning)
    looked_up = _look_up(owner_id, plans, places)
    if told := [*problems, *_at_their_places(looked_up.refusals, places)]:
        raise Refused(told)
    # What is still to be fetched counts as nothing.
    sizes: defaultdict[Wanted, int] = defaultdict(int)
    sizes |= {one: row.size_bytes for one, row in looked_up.known.items()}
    sizes |= {one: row.size_bytes for one, row in looked_up.images.items()}
    return _fitted(plans, sizes)


@contextlib.contextmanager
def planned(owner_id: int, planning: Planning, places: Places) -> Iterator[Planned]:
    """Take in the pictures of plans, unless there are problems. Not to be called in a transaction.

    Raises `Refused`.
    """
    problems, plans = _parted(planning)
    with collected(_look_up(owner_id, plans, places), places, problems) as pictures:
        yield Planned(_fitted(plans, pictures.size_bytes), pictures)


@contextlib.contextmanager
def collected(
    looked_up: LookedUp, places: Places, problems: Collection[Problem] = ()
) -> Iterator[Collected]:
    """Take in pictures, if there are no problems so far. Raises `Refused`."""
    if told := [*problems, *_at_their_places(looked_up.refusals, places)]:
        raise Refused(told)
    with references.collect(looked_up) as pictures:
        if not isinstance(pictures, Collected):
            raise Refused(_at_their_places(pictures, places))
        yield pictures


def _parted(planning: Iterable[Plan | Problem]) -> tuple[list[Problem], list[Plan]]:
    answers = list(planning)
    return (
        [one for one in answers if isinstance(one, Problem)],
        [one for one in answers if isinstance(one, Plan)],
    )


def _look_up(owner_id: int, plans: Iterable[Plan], places: Places) -> LookedUp:
    needed = [one for plan in plans for one in sources_of(plan.settings)]
    return references.look_up(owner_id, [*places.values(), *needed])


def _at_their_places(refusals: Mapping[Wanted, Refusal], places: Places) -> list[Problem]:
    """What is wrong with pictures; those that do not stand in the request come of its settings."""
    named = [Problem(place, *refusals[one]) for place, one in places.items() if one in refusals]
    return named or [Problem("settings.references", *one) for one in refusals.values()]


def _fitted(plans: Iterable[Plan], size_bytes: Mapping[Wanted, int]) -> list[Plan]:
    too_large, fitted = _parted(fitting(each, size_bytes) for each in plans)
    if too_large:
        raise Refused(list({one.field: one for one in too_large}.values()))
    return fitted
