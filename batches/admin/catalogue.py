"""The page of the models on offer: what an operator may say otherwise, and models of their own."""

import re
from typing import Any

from django import forms
from django.conf import settings
from django.contrib import admin
from django.core.exceptions import ValidationError
from django.core.validators import RegexValidator
from django.db.models import Q
from django.http import HttpRequest
from django.utils.html import format_html

from batches import catalogue
from batches.admin import lists, show
from batches.intake import unavailable_reason, unconfigured_reason
from batches.models import CatalogueModel
from generation.catalogue import Model

FIGURES = {
    "price_usd_per_image": "US dollars per image",
    "price_usd_per_second": "US dollars per second of run time",
    "est_seconds": "seconds of run time",
}
ID_PATTERN = re.compile(r"\A[A-Za-z0-9][\w.-]*/[\w.-]+\Z", re.ASCII)


class ProviderFilter(lists.FixedFilter):
    title = parameter_name = "provider"

    def __init__(self, *args: Any) -> None:
        self.values = tuple(settings.PROVIDER_POOLS)
        super().__init__(*args)


class CatalogueModelForm(forms.ModelForm):
    price_usd_per_image = forms.DecimalField(
        label="Price per image", min_value=0, max_digits=12, decimal_places=6, required=False
    )
    price_usd_per_second = forms.DecimalField(
        label="Price per second", min_value=0, max_digits=12, decimal_places=8, required=False
    )
    est_seconds = forms.FloatField(
        label="Usual seconds", min_value=0.01, max_value=86_400, required=False
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        defined = catalogue.definition(self.instance) if self.instance.definition else ""
        for name, unit in FIGURES.items():
            # Not there for who may only look.
            if field := self.fields.get(name):
                figure = getattr(defined, name, None)
                as_defined = "as defined" if figure is None else f"as defined, {figure}"
                field.help_text = f"{unit[0].upper()}{unit[1:]}. Empty: {as_defined}."
        if field := self.fields.get("id"):
            field.help_text = "Two words with a slash between them, such as <code>own/sdxl</code>."
            field.validators.append(RegexValidator(ID_PATTERN))
        if field := self.fields.get("definition"):
            field.help_text = "An entry in the layout of the data file, <code>models.json</code>."
            field.widget = forms.Textarea(attrs={"rows": 30, "cols": 100, "class": "json"})

    def clean_definition(self) -> str:
        text: str = self.cleaned_data["definition"]
        model_id = self.instance.pk or self.cleaned_data.get("id") or "own/model"
        parsed = catalogue.parse(model_id, text)
        if isinstance(parsed, str):
            raise ValidationError(parsed)
        if parsed.provider not in settings.PROVIDER_POOLS:
            raise ValidationError(unconfigured_reason(parsed.provider))
        self.instance.provider = parsed.provider
        return text


class CatalogueModelAdmin(lists.ReadOnlyAdmin):
    form = CatalogueModelForm
    ordering = ("id",)
    list_display = (
        "id",
        "provider",
        "price",
        "seconds",
        "enabled",
        "is_available",
        "why_not",
        "is_custom",
    )
    list_filter = (ProviderFilter, "enabled", "is_custom")
    list_select_related = False
    search_help_text = "Part of the id"

    loaded = show.column("loaded_at", show.moment, "definition loaded")
    updated = show.column("updated_at", show.moment, "changed here")

    def matches(self, term: str) -> Q:
        return Q(pk__icontains=term)  # there are never more than some dozens

    # --- Who may do what ------------------------------------------------------------------------

    def has_add_permission(self, request: HttpRequest) -> bool:  # type: ignore[override]
        return admin.ModelAdmin.has_add_permission(self, request)

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self.has_operate_permission(request)

    # --- The form -------------------------------------------------------------------------------

    def get_fields(
        self, request: HttpRequest, obj: CatalogueModel | None = None
    ) -> tuple[str, ...]:
        if obj is None:
            return ("id", "definition", "enabled", *FIGURES, "notes")
        is_editable = obj.is_custom and self.has_change_permission(request, obj)
        return (
            *("id", "provider", "is_available", "why_not", "enabled", *FIGURES, "notes"),
            *("definition" if is_editable else "entry", "loaded", "updated"),
        )

    def get_readonly_fields(
        self, request: HttpRequest, obj: CatalogueModel | None = None
    ) -> tuple[str, ...]:
        if obj is None:
            return ()
        return ("id", "provider", "is_available", "why_not", "entry", "loaded", "updated")

    def save_model(
        self, request: HttpRequest, obj: CatalogueModel, form: forms.ModelForm, change: bool
    ) -> None:
        if not change:
            obj.is_custom = True
            obj.save(force_insert=True)
            return
        # No others: the data file may have been loaded anew since the row was read.
        names = {*form.changed_data, "updated_at"}
        obj.save(update_fields=names | ({"provider"} if "definition" in names else set()))

    # --- Columns --------------------------------------------------------------------------------

    @admin.display(description="price")
    def price(self, row: CatalogueModel) -> str:
        return self._beside_definition(row, price_text)

    @admin.display(description="usual time")
    def seconds(self, row: CatalogueModel) -> str:
        return self._beside_definition(row, lambda model: show.duration(model.est_seconds))

    def _beside_definition(self, row: CatalogueModel, text_of: Any) -> str:
        effective = text_of(catalogue.offer(row).model)
        defined = catalogue.definition(row)
        if isinstance(defined, str) or (as_defined := text_of(defined)) == effective:
            return str(effective)
        return f"{effective} (defined: {as_defined})"

    @admin.display(description="available", boolean=True)
    def is_available(self, row: CatalogueModel) -> bool:
        return not unavailable_reason(catalogue.offer(row).model)

    @admin.display(description="why not")
    def why_not(self, row: CatalogueModel) -> str:
        defined = catalogue.definition(row)
        if isinstance(defined, str):
            return f"Its definition is malformed: {defined}"
        return unavailable_reason(catalogue.offer(row).model) or show.EMPTY

    @admin.display(description="definition")
    def entry(self, row: CatalogueModel) -> str:
        return format_html('<pre class="json">{}</pre>', row.definition)


def price_text(model: Model) -> str:
    if model.price_usd_per_second is not None:
        return f"${model.price_usd_per_second:f} per second"
    return f"${model.price_usd_per_image:f} per image"
