"""Faults on request: rules that make chosen predictions or requests go wrong.

A rule has a `kind`, says which create requests it is for, and may have options of its kind.
Kinds fall into groups; of each group the first rule that matches a create request applies to it.
Rules of the group `create` are asked first, and decide alone when one applies, so that a refused
request uses up no other rule. Rules of the groups `list request` and `upload request` are for
requests that list predictions or bring a file instead; those name no prompt and no model. Rules of
the groups that begin with `shop` are for requests to the shops: they name a `channel` and an
`operation`, no model, and their `prompt` is text that the body contains.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from simulator.webhooks import EVENTS


class FaultError(ValueError):
    """A rule that cannot be understood."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What a kind of fault acts on, and its options with their defaults."""

    group: str
    options: Mapping[str, Any] = field(default_factory=dict)


REFUSAL = "create"
LIST_REFUSAL = "list request"
UPLOAD_REFUSAL = "upload request"
# Requests that are not about one prediction: the rule itself counts the hits.
NOT_OF_PREDICTIONS = (LIST_REFUSAL, UPLOAD_REFUSAL)
SHOP_REFUSAL = "shop request"
SHOP_ANSWER = "shop answer"
SHOP_OUTCOME = "shop outcome"
SHOPS = (SHOP_REFUSAL, SHOP_ANSWER, SHOP_OUTCOME)
# What every kind for the shops takes; None: any.
_SHOP = {"channel": None, "operation": None}
INVALID_INPUT_TEXT = "ValueError: The prompt could not be encoded for this model."
INTERRUPTED_TEXT = "Prediction interrupted; please retry (code: PA)"
NSFW_TEXT = "NSFW content detected. Try running it again, or try a different prompt."
OUT_OF_MEMORY_TEXT = "CUDA out of memory. Tried to allocate 2.00 GiB"
# Where clouds hand their credentials to whoever asks from the inside.
METADATA_URL = "http://169.254.169.254/latest/meta-data/"

KINDS: dict[str, Kind] = {
    # The create request is refused, or never answered; there is no prediction.
    "create_status": Kind(
        REFUSAL, {"status": 500, "retry_after": None, "body": None, "content_type": None}
    ),
    "drop_create_before": Kind(REFUSAL),
    # There is a prediction, but its creator is not told, or late.
    "drop_create_after": Kind("answer"),
    "stall_create": Kind("answer", {"seconds": 60.0}),
    # The run ends otherwise.
    "fail": Kind("run", {"error": INVALID_INPUT_TEXT}),
    "interrupt": Kind("run", {"error": INTERRUPTED_TEXT}),
    "nsfw": Kind("run", {"error": NSFW_TEXT}),
    "out_of_memory": Kind("run", {"error": OUT_OF_MEMORY_TEXT}),
    "hang": Kind("run"),
    "slow": Kind("pace", {"seconds": 5.0}),
    # The run succeeds with another output.
    "short_output": Kind("output", {"count": None}),
    "empty_output": Kind("output", {"null": False}),
    "string_output": Kind("output"),
    "data_uri_output": Kind("output"),
    # The URLs name a server that is not this one.
    "foreign_host": Kind("output", {"base_url": "https://files.example.net"}),
    # Reading the prediction fails, the first `hits` times or always.
    "get_status": Kind("get", {"status": 503, "hits": None}),
    # Cancelling has no effect, the first `hits` times or always.
    "cancel_status": Kind("cancel", {"status": 503, "hits": None}),
    "drop_cancel": Kind("cancel", {"hits": None}),
    "cancel_ignored": Kind("cancel"),
    # The prediction can be read but is in no list.
    "list_hidden": Kind("list"),
    # The list itself is refused, the first `hits` times or always.
    "list_status": Kind(LIST_REFUSAL, {"status": 503, "hits": None}),
    # A file is refused, the first `hits` times or always.
    "upload_status": Kind(UPLOAD_REFUSAL, {"status": 503, "hits": None}),
    # Reading an output file goes wrong, the first `hits` times per file or always.
    "truncated_file": Kind("file", {"hits": None}),
    "wrong_type": Kind("file", {"hits": None}),
    "empty_file": Kind("file", {"hits": None}),
    "file_status": Kind("file", {"status": 404, "hits": None}),
    "drop_file": Kind("file", {"hits": None}),
    "drip": Kind("file", {"seconds": 0.05, "hits": None}),
    "file_redirect": Kind("file", {"location": METADATA_URL, "hits": None}),
    "gzip_bomb": Kind("file", {"hits": None}),
    "huge_png": Kind("file", {"hits": None}),
    "polyglot": Kind("file", {"hits": None}),
    "svg_script": Kind("file", {"hits": None}),
    # The data of the prediction is gone that long after completion.
    "expired": Kind("data", {"seconds": 0.0}),
    # Webhooks; `event` limits the fault to one event.
    "webhook_drop": Kind("webhook_drop", {"event": None}),
    "webhook_duplicate": Kind("webhook_duplicate", {"event": None, "copies": 2}),
    "webhook_delay": Kind("webhook_delay", {"event": None, "seconds": 1.0}),
    "webhook_reorder": Kind("webhook_reorder"),
    "webhook_bad_signature": Kind("webhook_bad_signature", {"event": None}),
    # A request to a shop is refused and has no effect.
    "shop_status": Kind(
        SHOP_REFUSAL,
        {**_SHOP, "status": 503, "retry_after": None, "body": None, "content_type": None},
    ),
    "shop_throttled": Kind(SHOP_REFUSAL, {**_SHOP, "retry_after": None}),
    "shop_drop_before": Kind(SHOP_REFUSAL, {**_SHOP}),
    # The shop does what it was asked, but its caller is not told, or told nonsense, or late.
    "shop_drop_after": Kind(SHOP_ANSWER, {**_SHOP}),
    "shop_status_after": Kind(SHOP_ANSWER, {**_SHOP, "status": 502}),
    "shop_garbage": Kind(SHOP_ANSWER, {**_SHOP, "body": '{"id": "5d39'}),
    "shop_slow": Kind(SHOP_ANSWER, {**_SHOP, "seconds": 60.0}),
    # What the shop does in the background comes to nothing, or to no end.
    "shop_fails": Kind(SHOP_OUTCOME, {**_SHOP}),
    "shop_hangs": Kind(SHOP_OUTCOME, {**_SHOP}),
}

_OPTION_TYPES: dict[str, tuple[type, ...]] = {
    "status": (int,),
    "retry_after": (str, int, float),
    "body": (str,),
    "content_type": (str,),
    "error": (str,),
    "seconds": (int, float),
    "count": (int,),
    "null": (bool,),
    "hits": (int,),
    "location": (str,),
    "base_url": (str,),
    "event": (str,),
    "copies": (int,),
    "channel": (str,),
    "operation": (str,),
}
_MATCH_TYPES: dict[str, tuple[type, ...]] = {
    "prompt": (str,),
    "model": (str,),
    "nth": (int,),
    "rate": (int, float),
    "times": (int,),
}


@dataclass(slots=True)
class Rule:
    """One rule; a condition of None always holds.

    prompt: text the prompt must contain. model: `owner/name`. nth: only the nth create request
    that meets the conditions before this one, counted from 1. rate: the chance, from a seeded
    generator. times: how often the rule applies at most.
    """

    id: int
    kind: str
    rng: random.Random
    options: dict[str, Any]
    prompt: str | None = None
    model: str | None = None
    nth: int | None = None
    rate: float | None = None
    times: int | None = None
    seen: int = 0
    applied: int = 0

    @property
    def group(self) -> str:
        """Return the group of the rule's kind."""
        return KINDS[self.kind].group

    def matches(self, model_id: str, prompt: str) -> bool:
        """Tell whether the rule is for this create request, which counts as seen."""
        if self.prompt is not None and self.prompt not in prompt:
            return False
        if self.model is not None and self.model != model_id:
            return False
        self.seen += 1
        if self.nth is not None and self.seen != self.nth:
            return False
        if self.rate is not None and self.rng.random() >= self.rate:
            return False
        return self.times is None or self.applied < self.times

    def covers(self, hit: int) -> bool:
        """Tell whether the rule is for the `hit`-th request of its sort, counted from 1."""
        hits = self.options.get("hits")
        return hits is None or hit <= hits

    def concerns(self, event: str) -> bool:
        """Tell whether a webhook rule is for `event`."""
        return self.options.get("event") in (None, event)

    def as_json(self) -> dict[str, Any]:
        """Return the rule as it can be posted, with its counts."""
        conditions = {name: getattr(self, name) for name in _MATCH_TYPES}
        counts = {"seen": self.seen, "applied": self.applied}
        return {"id": self.id, "kind": self.kind, **conditions, **self.options, **counts}


class RuleBook:
    """All rules, in the order they were added."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._rules: list[Rule] = []
        self._next_id = 1

    def add(self, spec: Mapping[str, Any]) -> Rule:
        """Add the rule in `spec`, the JSON body of `POST /_sim/faults`.

        Raises:
            FaultError: when the kind or a key is unknown or a value has the wrong type.
        """
        kind = KINDS.get(spec.get("kind", ""))
        if kind is None:
            raise FaultError(f"unknown kind {spec.get('kind')!r}; known: {', '.join(KINDS)}")
        options = dict(kind.options)
        conditions: dict[str, Any] = {}
        for key, value in spec.items():
            if key == "kind":
                continue
            known = key in options or key in _MATCH_TYPES
            about_creates = key in ("prompt", "model") and value is not None
            is_odd = about_creates and (
                kind.group in NOT_OF_PREDICTIONS or (kind.group in SHOPS and key == "model")
            )
            if not known or is_odd:
                raise FaultError(f"{spec['kind']} takes no {key!r}")
            types = (_MATCH_TYPES | _OPTION_TYPES)[key]
            if value is not None and (not isinstance(value, types) or _is_stray_bool(value, types)):
                raise FaultError(f"{key} must be {' or '.join(t.__name__ for t in types)}")
            (conditions if key in _MATCH_TYPES else options)[key] = value
        if options.get("event") not in (None, *EVENTS):
            raise FaultError(f"event must be one of {', '.join(EVENTS)}")
        rng = random.Random(f"{self._seed}:{self._next_id}")
        rule = Rule(self._next_id, spec["kind"], rng, options, **conditions)
        self._rules.append(rule)
        self._next_id += 1
        return rule

    def clear(self) -> None:
        """Remove all rules; predictions under way keep theirs."""
        self._rules.clear()

    def as_json(self) -> list[dict[str, Any]]:
        """Return all rules."""
        return [rule.as_json() for rule in self._rules]

    def refusal(self, model_id: str, prompt: str) -> Rule | None:
        """Return the rule that refuses this create request, or None."""
        return self._pick(model_id, prompt, lambda rule: rule.group == REFUSAL).get(REFUSAL)

    def for_prediction(self, model_id: str, prompt: str) -> dict[str, Rule]:
        """Return the rules that apply to a prediction being created, by group."""
        others = (REFUSAL, *NOT_OF_PREDICTIONS, *SHOPS)
        return self._pick(model_id, prompt, lambda rule: rule.group not in others)

    def list_refusal(self) -> Rule | None:
        """Return the rule that refuses this request for a list, or None."""
        return self._pick("", "", lambda rule: rule.group == LIST_REFUSAL).get(LIST_REFUSAL)

    def upload_refusal(self) -> Rule | None:
        """Return the rule that refuses this request with a file, or None."""
        return self._pick("", "", lambda rule: rule.group == UPLOAD_REFUSAL).get(UPLOAD_REFUSAL)

    def shop_refusal(self, channel: str, operation: str, body: str) -> Rule | None:
        """Return the rule that refuses this request to a shop, or None."""
        return self._for_shop((SHOP_REFUSAL,), channel, operation, body).get(SHOP_REFUSAL)

    def for_shop(self, channel: str, operation: str, body: str) -> dict[str, Rule]:
        """Return the rules for a request that a shop accepts, by group."""
        return self._for_shop((SHOP_ANSWER, SHOP_OUTCOME), channel, operation, body)

    def _for_shop(
        self, groups: tuple[str, ...], channel: str, operation: str, body: str
    ) -> dict[str, Rule]:
        def is_asked(rule: Rule) -> bool:
            return (
                rule.group in groups
                and rule.options["channel"] in (None, channel)
                and rule.options["operation"] in (None, operation)
            )

        return self._pick("", body, is_asked)

    def _pick(
        self, model_id: str, prompt: str, is_asked: Callable[[Rule], bool]
    ) -> dict[str, Rule]:
        picked: dict[str, Rule] = {}
        for rule in self._rules:
            group = rule.group
            if not is_asked(rule) or not rule.matches(model_id, prompt):
                continue
            if group not in picked and (group not in NOT_OF_PREDICTIONS or rule.covers(rule.seen)):
                rule.applied += 1
                picked[group] = rule
        return picked


def _is_stray_bool(value: object, types: tuple[type, ...]) -> bool:
    return isinstance(value, bool) and bool not in types
