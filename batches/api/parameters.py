"""Query parameters: those that an operation has, each of them once.

Any other refuses the request before anything is done: a misspelt filter must not list everything,
and a `dry_run` where there is none must not be the real thing.
"""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from django_filters.rest_framework import MultipleChoiceFilter
from rest_framework.mixins import ListModelMixin
from rest_framework.request import Request
from rest_framework.views import APIView

from batches.api.negotiation import JSONAlways
from batches.forms import UNKNOWN_FIELDS_TOLD, StrictSerializer
from batches.intake import Problem, Refused

PAGES = ("cursor", "page_size")

Act = TypeVar("Act", bound=Callable[..., Any])
# A name, or a form: a StrictSerializer or a FilterSet.
Source = str | type[Any]
# By the name of a parameter: whether it may be given several times.
Taken = dict[str, bool]


def takes(*sources: Source) -> Callable[[Act], Act]:
    """Marks a view's method with the parameters it has: names, or the fields of a form.

    Lists have their filters and pages without it.
    """

    def mark(act: Act) -> Act:
        act.parameters = _taken(sources)  # type: ignore[attr-defined]
        return act

    return mark


def _taken(sources: Iterable[Source]) -> Taken:
    taken: Taken = {}
    for source in sources:
        if isinstance(source, str):
            taken[source] = False
        elif issubclass(source, StrictSerializer):
            taken |= dict.fromkeys(map(str, source().fields), False)
        else:
            for name, one in source.base_filters.items():
                taken[name] = isinstance(one, MultipleChoiceFilter)
    return taken


class StrictView(APIView):
    """Answers in JSON, and refuses query parameters that the operation does not have."""

    content_negotiation_class = JSONAlways

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        super().initial(request, *args, **kwargs)
        method = str(request.method).lower()
        act = getattr(self, method, None) if method in self.http_method_names else None
        if request.query_params and act is not None and method != "options":
            self._check(request, self._parameters(act, method))

    def _parameters(self, act: Any, method: str) -> Taken:
        is_list = isinstance(self, ListModelMixin) and getattr(self, "action", "list") == "list"
        if is_list and method in ("get", "head"):
            filters = getattr(self, "filterset_class", None)
            return _taken([*([filters] if filters else []), *PAGES])
        marked: Taken = getattr(act, "parameters", {})
        return marked

    def _check(self, request: Request, taken: Taken) -> None:
        known = ", ".join(taken) or "none"
        problems = []
        for name, values in request.query_params.lists():
            if name not in taken:
                detail = f"Unknown parameter; known are {known}."
                problems.append(Problem(name, "unknown_parameter", detail, list(taken)))
            elif len(values) > 1 and not taken[name]:
                problems.append(Problem(name, "repeated", "May be given once."))
        if problems:
            raise Refused(problems[:UNKNOWN_FIELDS_TOLD])
