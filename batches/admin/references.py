"""The page about what users make pictures from."""

from django.contrib import admin
from django.db.models import Q
from django.template.defaultfilters import filesizeformat
from django.utils.html import format_html, format_html_join

from batches.admin import lists, show
from batches.models import Generation, Reference
from batches.signing import signed_url

GENERATIONS_SHOWN = 20


class ReferenceAdmin(lists.ReadOnlyAdmin):
    list_display = (
        "small",
        "short_id",
        "owner_link",
        "dimensions",
        "format",
        "size",
        "created",
    )
    list_filter = (lists.OwnerFilter, "created_at")
    search_help_text = "Reference image id, or owner's username"
    fields = (
        "large",
        "id",
        "owner",
        "dimensions",
        "format",
        "size",
        "sha256",
        "file_name",
        "thumbnail_name",
        "created",
        "made_from_it",
    )

    short_id = show.column("id", show.short_id, "reference image")
    size = show.column("size_bytes", filesizeformat, "size")
    # By name: the storage's own addresses lead past the checks of the API.
    file_name = show.column("file", str)
    thumbnail_name = show.column("thumbnail", str)

    def matches(self, term: str) -> Q:
        return lists.by_uuid(term, "pk") | lists.by_owner(term)

    @admin.display(description="preview")
    def small(self, reference: Reference) -> str:
        return self._thumbnail(reference, "thumbnail")

    @admin.display(description="preview")
    def large(self, reference: Reference) -> str:
        url = signed_url("", reference.pk, "file", collection="references")
        return show.link(url, self._thumbnail(reference, "preview"))

    @admin.display(description="dimensions")
    def dimensions(self, reference: Reference) -> str:
        return f"{reference.width} x {reference.height} px"

    @admin.display(description=f"last {GENERATIONS_SHOWN} generations made from it")
    def made_from_it(self, reference: Reference) -> str:
        uses = reference.generations.order_by("-pk").values_list("generation", flat=True)
        links = (
            (show.link(show.page_url(Generation, pk), show.short_id(pk)),)
            for pk in uses[:GENERATIONS_SHOWN]
        )
        return format_html_join(" ", "{}", links) or show.EMPTY

    def _thumbnail(self, reference: Reference, css_class: str) -> str:
        return format_html(
            '<img class="{}" src="{}" alt="Reference image {}" loading="lazy">',
            css_class,
            signed_url("", reference.pk, "thumbnail", collection="references"),
            show.short_id(reference.pk),
        )
