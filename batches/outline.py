"""What would come of a request: nothing of it is stored, and nothing is fetched."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal

from batches.catalogue import get_model
from batches.estimates import Eta, batch_eta, run_times
from batches.intake import Plan
from batches.models import Batch, BatchStatus, Generation, GenerationStatus, Outlook, Pool
from batches.pools import CIRCUIT_THRESHOLD
from batches.submission import Asked, check

SMALLEST_USD = Decimal("0.000001")


@dataclass(frozen=True, slots=True)
class Limit:
    """Something that would have a part of the request wait. `provider` is "" for all of them;
    `limit`, `used` and `asked` are numbers of generations, `None` where none is meant."""

    code: str
    detail: str
    provider: str = ""
    limit: int | None = None
    used: int | None = None
    asked: int | None = None


@dataclass(frozen=True, slots=True)
class Outlined:
    """One generation that would be made, `index` counted from 0."""

    index: int
    plan: Plan
    cost_usd: Decimal


@dataclass(frozen=True, slots=True)
class Outline:
    """What would be made, in order, what it would cost, and what it would wait for."""

    items: Sequence[Outlined]
    cost_usd: Decimal
    eta: Eta
    limits: Sequence[Limit]


def outline(owner_id: int, asked: Asked) -> Outline:
    """Tell what `asked` would make. Raises `Refused` as its submission would, except for what
    only shows when a picture is fetched."""
    plans = check(owner_id, asked)
    outlook = Batch.objects.outlook_for(owner_id, asked.fields["priority"])
    is_scheduled = asked.fields.get("start_at") is not None
    batch = Batch(status=BatchStatus.SCHEDULED if is_scheduled else BatchStatus.PENDING)
    rows = [
        Generation(model=plan.model, provider=plan.provider, status=GenerationStatus.QUEUED)
        for plan in plans
    ]
    items = [Outlined(index, plan, _cost_usd(plan)) for index, plan in enumerate(plans)]
    return Outline(
        items=items,
        cost_usd=sum((item.cost_usd for item in items), Decimal(0)),
        eta=batch_eta(batch, rows, outlook),
        limits=list(_limits(plans, outlook)),
    )


def _cost_usd(plan: Plan) -> Decimal:
    """By the catalogue's prices; where run time is charged, of a usual run."""
    model = get_model(plan.model)
    assert model is not None  # what the plan was made with
    if model.price_usd_per_second is not None:
        cost = model.price_usd_per_second * Decimal(str(run_times(plan.model).mean_s))
    else:
        cost = model.price_per_image(plan.input) * plan.output_count
    return cost.quantize(SMALLEST_USD, rounding=ROUND_HALF_UP)


def _limits(plans: Sequence[Plan], outlook: Outlook) -> Iterator[Limit]:
    total = len(plans)
    if outlook.running + total > outlook.cap:
        yield Limit(
            "user_cap",
            f"At most {outlook.cap} of your generations run at a time.",
            limit=outlook.cap,
            used=outlook.running,
            asked=total,
        )
    if outlook.ahead:
        yield Limit(
            "ahead_in_line", "Your earlier generations go first.", used=outlook.ahead, asked=total
        )
    system = outlook.pools.get(Pool.SYSTEM)
    if system and total > system.capacity:
        yield Limit(
            "global_cap",
            f"At most {system.capacity} generations of all users run at a time.",
            limit=system.capacity,
            asked=total,
        )
    for provider, asked in sorted(Counter(plan.provider for plan in plans).items()):
        yield from _provider_limits(provider, asked, outlook)


def _provider_limits(provider: str, asked: int, outlook: Outlook) -> Iterator[Limit]:
    pool = outlook.pools.get(provider)
    if pool is None:
        return
    if pool.is_stopped:
        detail = f"Nothing is submitted to {provider} until an operator allows it again."
        yield Limit("provider_stopped", detail, provider, asked=asked)
    if pool.failure_count >= CIRCUIT_THRESHOLD:
        yield Limit("provider_away", f"{provider} does not answer.", provider, asked=asked)
    if pool.blocked_s > 0:
        detail = f"{provider} asked us to wait for {pool.blocked_s:.0f} more seconds."
        yield Limit("provider_rate_limited", detail, provider, asked=asked)
    if asked > pool.capacity:
        detail = f"At most {pool.capacity} generations run at {provider} at a time."
        yield Limit("provider_capacity", detail, provider, limit=pool.capacity, asked=asked)
