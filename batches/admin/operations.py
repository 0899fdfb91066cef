"""The pages about how the work is run: lanes, pools, leases and alerts."""

from collections.abc import Iterable
from typing import Any

from django import forms
from django.contrib import admin
from django.db.models import Case, F, Q, QuerySet, When
from django.db.models.functions import Least, Now
from django.http import HttpRequest
from django.utils import timezone

from batches import pools, wake
from batches.admin import lists, show
from batches.admin.commands import ALERT_COMMANDS, Command, CommandAdmin
from batches.models import Alert, Generation, Lane, Lease, Pool


class LimitsAdmin(lists.ReadOnlyAdmin):
    """Rows of which an operator may set a few fields."""

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self.has_operate_permission(request)

    def save_changed(self, row: Lane | Pool, names: Iterable[str]) -> None:
        """Save these fields and no others: the counters have moved on since the row was read."""
        row.save(update_fields=names)
        wake.dispatch()  # there may be more room now


class LaneForm(forms.ModelForm):
    weight = forms.FloatField(
        min_value=0.01, max_value=100, help_text="Share of the slots, against 1 of the others."
    )


class LaneAdmin(LimitsAdmin):
    form = LaneForm
    ordering = ("owner_id",)
    list_display = ("owner", "cap", "cap_is_own", "weight", "running", "queued", "generations")
    search_help_text = "Owner's username"
    fields = ("owner", "cap", "cap_is_own", "weight", "running", "queued", "vtime", "generations")
    readonly_fields = ("owner", "running", "queued", "vtime", "generations")

    generations = show.rows_link(Generation, "owner", "generations")

    def matches(self, term: str) -> Q:
        return lists.by_owner(term)

    def save_model(
        self, request: HttpRequest, obj: Lane, form: forms.ModelForm, change: bool
    ) -> None:
        names = set(form.changed_data)
        if "cap" in names:
            obj.cap_is_own = True
            names.add("cap_is_own")
        self.save_changed(obj, names)


class PoolForm(forms.ModelForm):
    rate_per_s = forms.FloatField(
        min_value=0.001,
        max_value=10_000,
        required=False,
        label="Rate",
        help_text="New submissions per second. Empty: no limit.",
    )
    burst = forms.IntegerField(
        min_value=1, max_value=10_000, help_text="Submissions that may be made at once."
    )


class PoolAdmin(LimitsAdmin):
    form = PoolForm
    ordering = ("name",)
    list_display = (
        "name",
        "state",
        "capacity",
        "running",
        "rate",
        "burst",
        "blocked",
        "failure_count",
        "stopped",
    )
    list_select_related = False
    search_fields = ()
    fields = (
        "name",
        "state",
        "stopped",
        "failure_count",
        "capacity",
        "running",
        "rate_per_s",
        "burst",
        "tokens",
        "refilled",
        "blocked_until",
        "vtime",
    )
    readonly_fields = (
        "name",
        "state",
        "stopped",
        "failure_count",
        "running",
        "tokens",
        "refilled",
        "vtime",
    )

    stopped = show.column("stopped_by", str, "stopped by")
    rate = show.column("rate_per_s", lambda rate: f"{rate:g} per second")
    refilled = show.column("refilled_at", show.moment)
    blocked = show.column("blocked_until", show.moment)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Pool]:
        is_blocked = Case(When(blocked_until__gt=Now(), then=True), default=False)
        return Pool.objects.with_running().annotate(is_blocked=is_blocked)

    @admin.display(description="state")
    def state(self, pool: Pool) -> str:
        if pool.name == Pool.SYSTEM:
            return show.EMPTY
        is_blocked: bool = pool.is_blocked  # type: ignore[attr-defined]
        return show.badge(pools.state_of(pool, is_blocked=is_blocked))

    @admin.display(description="running")
    def running(self, pool: Pool) -> int:
        return pool.running  # type: ignore[attr-defined, no-any-return]

    def has_change_permission(self, request: HttpRequest, obj: Pool | None = None) -> bool:
        """That of the system follows its setting."""
        if obj is not None and obj.name == Pool.SYSTEM:
            return False
        return super().has_change_permission(request, obj)

    def save_model(
        self, request: HttpRequest, obj: Pool, form: forms.ModelForm, change: bool
    ) -> None:
        names = set(form.changed_data)
        if "burst" in names:
            obj.tokens = Least(F("tokens"), obj.burst)  # a bucket holds no more than fits
            names.add("tokens")
        self.save_changed(obj, names)


class LeaseAdmin(lists.ReadOnlyAdmin):
    # There are no more leases than slots and downloads, so this order needs no index.
    ordering = ("created_at", "id")
    list_display = (
        "short_id",
        "generation_link",
        "owner_link",
        "pool",
        "holds_slot",
        "turn",
        "is_held",
        "crash_count",
        "age",
        "expires",
    )
    list_filter = (lists.OwnerFilter,)
    list_select_related = ("owner", "pool")
    search_help_text = "Lease id, generation id or owner's username"
    fields = (
        "id",
        "generation",
        "owner",
        "pool",
        "holds_slot",
        "turn",
        "is_held",
        "crash_count",
        "age",
        "created",
        "expires",
    )

    generation_link = show.row_link("generation_id", Generation)
    short_id = show.column("id", show.short_id, "lease")
    expires = show.column("expires_at", show.moment)

    def matches(self, term: str) -> Q:
        return lists.by_uuid(term, "pk", "generation_id") | lists.by_owner(term)

    @admin.display(description="age")
    def age(self, lease: Lease) -> str:
        return show.duration((timezone.now() - lease.created_at).total_seconds())


class AlertAdmin(CommandAdmin):
    commands = ALERT_COMMANDS
    # Open ones first; sorted are those alone that `get_search_results` leaves.
    ordering = (F("cleared_at").desc(nulls_first=True), "-last_seen_at", "-id")
    list_display = fields = (
        "code_badge",
        "subject",
        "message",
        "count",
        "first_seen",
        "last_seen",
        "cleared",
        "cleared_by",
    )
    list_filter = (lists.AlertStateFilter, lists.AlertCodeFilter)
    list_select_related = ("cleared_by",)
    search_fields = ()

    code_badge = show.column("code", show.badge, "code")
    first_seen = show.column("created_at", show.moment, "first seen")
    last_seen = show.column("last_seen_at", show.moment, "last seen")
    cleared = show.column("cleared_at", show.moment)

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet, search_term: str
    ) -> tuple[QuerySet, bool]:
        """All that are open and the newest of all: as many as a list shows, by their indexes."""
        still_open = Alert.objects.open().order_by().values("pk")
        newest = Alert.objects.order_by("-last_seen_at", "-id").values("pk")[: lists.COUNT_MAX]
        return queryset.filter(pk__in=still_open.union(newest)), False

    def why_not(self, command: Command, row: Alert | None) -> str:
        return "gone" if row is None else "cleared already"
