"""Values in readable form, links, and columns made of them."""

import json
import uuid
from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from typing import Any

from django.contrib import admin
from django.db.models import Model
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString

from batches.models import Image
from batches.signing import signed_url

EMPTY = "-"
HIDDEN = "[token]"  # in the place of a secret

Column = Callable[[Any, Any], Any]


# --- Values -------------------------------------------------------------------------------------


def duration(seconds: float) -> str:
    if seconds < 9.95:
        return f"{max(0.0, seconds):.1f} s"
    minutes, whole_seconds = divmod(round(seconds), 60)
    hours, minutes_left = divmod(minutes, 60)
    if not minutes:
        return f"{whole_seconds} s"
    if not hours:
        return f"{minutes} min {whole_seconds} s"
    if hours < 24:
        return f"{hours} h {minutes_left} min"
    return f"{hours // 24} d {hours % 24} h"


def moment(at: datetime) -> SafeString:
    seconds = (timezone.now() - at).total_seconds()
    return format_html(
        '<time class="nowrap" datetime="{}">{} UTC</time> <span class="since nowrap">{}</span>',
        at.isoformat(),
        at.strftime("%Y-%m-%d %H:%M:%S"),
        f"{duration(seconds)} ago" if seconds >= 0 else f"in {duration(-seconds)}",
    )


def dollars(amount: Decimal) -> str:
    return f"${amount:.4f}"


def badge(status: str) -> SafeString:
    return format_html(
        '<span class="badge badge-{}">{}</span>', status, status.replace("_", " ").capitalize()
    )


def bar(value: int, maximum: int, text: str) -> SafeString:
    return format_html(
        '<span class="nowrap"><progress class="bar" value="{}" max="{}"></progress>{}</span>',
        value,
        maximum,
        text,
    )


def pretty_json(value: Any, secret: object = None) -> SafeString:
    """`secret` is left out wherever it stands."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    if secret is not None:
        text = text.replace(str(secret), HIDDEN)
    return format_html('<pre class="json">{}</pre>', text)


def short_id(row_id: uuid.UUID) -> str:
    return str(row_id)[:8]


def thumbnail(image: Image, css_class: str = "thumbnail") -> SafeString:
    return format_html(
        '<img class="{}" src="{}" alt="Image {}" loading="lazy">',
        css_class,
        signed_url("", image.pk, "thumbnail"),
        short_id(image.pk),
    )


# --- Links --------------------------------------------------------------------------------------


def link(url: str, text: object) -> SafeString:
    return format_html('<a href="{}">{}</a>', url, text)


def page_url(model: type[Model], pk: object) -> str:
    return reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_change", args=[pk])


def list_url(model: type[Model], **filters: object) -> str:
    """A list, narrowed by filters: the value of each by its parameter's name."""
    name = f"admin:{model._meta.app_label}_{model._meta.model_name}_changelist"
    return reverse(name, query=filters)


# --- Columns ------------------------------------------------------------------------------------


def column(field: str, render: Callable[[Any], str], label: str = "") -> Column:
    """A column with a field's value in readable form."""

    @admin.display(description=label or field.removesuffix("_at").replace("_", " "))
    def column(_: Any, row: Any) -> str:
        value = getattr(row, field)
        return EMPTY if value is None or value == "" else render(value)

    return column


def row_link(field: str, model: type[Model]) -> Column:
    """A column that links to another row, which need not be loaded for it."""

    @admin.display(description=field.removesuffix("_id"))
    def column(_: Any, row: Any) -> str:
        pk = getattr(row, field)
        return link(page_url(model, pk), short_id(pk)) if pk else EMPTY

    return column


def rows_link(model: type[Model], parameter: str, label: str) -> Column:
    """A column that links to the rows of another list which belong to this one."""

    @admin.display(description=label)
    def column(_: Any, row: Any) -> str:
        return link(list_url(model, **{parameter: row.pk}), f"All {label}")

    return column
