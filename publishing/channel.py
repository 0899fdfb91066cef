"""The protocol of channels: where images become products.

Plain Python: dataclasses in, dataclasses out, failures as values. A channel publishes an item in
steps, each of one call or a few, in the order of `next_step`. What a step has come to is kept by
the caller in `remote_ids`, which go in again with the next; so any step can be taken by another
process than the one before.

A step that creates something is recorded before it is taken. When its answer was lost, `find` is
asked what became of it before it is taken again: no channel here has idempotency keys.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, ClassVar, Protocol

from generation.provider import Failure, InputFile

# In the remote ids of what was a product already and is to be another: until the step `product` is
# taken again, what `find` sees may be the product as it was.
CHANGED = "changed"


@dataclass(frozen=True, slots=True)
class Item:
    """An image that is to become a product.

    `key` is unique among all publications and the same at every try: 1 to 64 characters of
    `a-z0-9-`. `artwork` is PNG or JPEG; `artwork_url` is where the channel may fetch the same
    bytes from, empty when it cannot. `product` is what the account or `publishing.products` says
    of the product type at this channel. `price_usd` goes before the product's own.
    """

    key: str
    title: str
    product_type: str
    product: Mapping[str, Any]
    artwork: InputFile
    width_px: int
    height_px: int
    artwork_url: str = ""
    description: str = ""
    tags: tuple[str, ...] = ()
    price_usd: Decimal | None = None
    remote_ids: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Done:
    """A step was taken. `remote_ids` are new or changed ids; `url` is where the product is seen.

    `raw` is the channel's answer, kept with the record of a step that creates something."""

    remote_ids: Mapping[str, str] = field(default_factory=dict)
    url: str = ""
    raw: Any = None


@dataclass(frozen=True, slots=True)
class Pending:
    """The channel is still at it: ask again after so long. No answer of a step that creates."""

    after_s: float


@dataclass(frozen=True, slots=True)
class NotThere:
    """Certain: what the lost call was to create does not exist."""


@dataclass(frozen=True, slots=True)
class Step:
    """`creates`: it is recorded before it is taken, and found before it is taken again.
    `publishes`: it counts against the channel's limit of publications as well as of calls.
    `sends`: the artwork goes with it. To the others and to `find` only its name and type matter."""

    name: str
    creates: bool = True
    publishes: bool = False
    sends: bool = False


@dataclass(frozen=True, slots=True)
class Limits:
    """What an account may do: calls of any kind a minute, publications within a window."""

    calls_per_minute: int
    publications: int
    publications_window_s: float


@dataclass(frozen=True, slots=True)
class Account:
    """Who the credentials belong to: for the user to see that they are right."""

    name: str
    shops: tuple[Mapping[str, str], ...] = ()  # {id, title}


class Channel(Protocol):
    """One account of one channel. Thread-safe; holds no state but its connections.

    At every channel the step that makes the product is `product`, and its id `product_id`.
    """

    name: ClassVar[str]
    limits: ClassVar[Limits]
    # Of the remote ids of a publication that failed, what is kept when it is tried anew: what was
    # made. The others say how far it had come.
    kept_ids: ClassVar[frozenset[str]]
    # Whether the step `product`, taken again without an id, changes the product that is there.
    changes_product: ClassVar[bool]

    def check(self) -> Account | Failure:
        """Ask whether the credentials are good."""

    def next_step(self, item: Item) -> Step | None:
        """What is to be done next, by `item.remote_ids`; `None`: it is published."""

    def take(self, step: Step, item: Item) -> Done | Pending | Failure:
        """Take a step, once.

        `Failure` with TIMEOUT_UNKNOWN: it may have had its effect. RATE_LIMITED and
        PROVIDER_UNAVAILABLE: it has had none.
        """

    def find(self, step: Step, item: Item) -> Done | NotThere | Failure:
        """What became of a step that creates something, of which no answer came."""
