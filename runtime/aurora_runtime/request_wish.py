"""Reads what a client asks for its request: no trace, a tag for the trace, a tenant for lookup, or no speculation.

A request says so in ``custom_params``, which SGLang takes on its OpenAI routes and on ``/generate``, and carries
unchanged to its scheduler::

    {"custom_params": {"aurora": {"trace": false}}}
    {"custom_params": {"aurora": {"tag": "tenant-7"}}}
    {"custom_params": {"aurora": {"tenant": "shop"}}}
    {"custom_params": {"aurora": {"speculate": false}}}

Invariants: a tag or a tenant leaves the engine only as a hash (:mod:`aurora_protocol.tag_hash`). A wish that cannot be
read is refused before the scheduler. A wish that reaches the scheduler unreadable all the same means "no trace". This
module imports neither torch nor SGLang.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

PARAMETER: Final = "aurora"
"""The key of ``custom_params`` that holds the wish."""
MAX_TAG_CHARACTERS: Final = 128
"""Limit of a tag, and of a tenant."""


@dataclass(frozen=True)
class RequestWish:
    """What one request asks for."""

    trace: bool = True
    """Whether the request may be traced."""
    tag: str = ""
    """The tag of its trace; empty: none."""
    speculate: bool = True
    """Whether tokens may be proposed for the request."""
    tenant: str = ""
    """Lookup answers the request only from requests of the same tenant; empty: from those without one."""

    @property
    def trace_tag(self) -> str:
        """The tag of the request's trace: its own, or else its tenant."""
        return self.tag or self.tenant

    @property
    def is_shared(self) -> bool:
        """Whether lookup may answer other requests of the tenant from this one.

        A tagged request is not shared, so that its text lies in shards only, where it can be erased.
        """
        return self.trace and not self.tag


DEFAULT: Final = RequestWish()
NO_TRACE: Final = RequestWish(trace=False)


def request_wish(custom_params: Any) -> RequestWish:
    """The wish in a request's ``custom_params``.

    Raises ValueError, which SGLang answers with status 400. Its text does not show the tag.
    """
    if custom_params is None:
        return DEFAULT
    if not isinstance(custom_params, Mapping):
        raise ValueError("custom_params must be an object")  # noqa: TRY004
    if any(isinstance(key, str) and key != PARAMETER and key.lower() == PARAMETER for key in custom_params):
        raise ValueError(f"custom_params: write {PARAMETER} in lower case")
    if PARAMETER not in custom_params:
        return DEFAULT
    asked = custom_params[PARAMETER]
    if not isinstance(asked, Mapping):
        raise ValueError(f'custom_params.{PARAMETER} must be an object such as {{"trace": false}} or {{"tag": "name"}}')  # noqa: TRY004
    if unknown := asked.keys() - {"trace", "tag", "tenant", "speculate"}:
        raise ValueError(
            f"custom_params.{PARAMETER} knows only trace, tag, tenant and speculate, not {len(unknown)} other key(s)"
        )
    trace, speculate = asked.get("trace", True), asked.get("speculate", True)
    for name, value in (("trace", trace), ("speculate", speculate)):
        if not isinstance(value, bool):
            raise ValueError(f"custom_params.{PARAMETER}.{name} must be true or false")  # noqa: TRY004
    return RequestWish(trace, _name(asked, "tag"), speculate, _name(asked, "tenant"))


def _name(asked: Mapping[Any, Any], key: str) -> str:
    """The text under ``key``; empty without it. Raises ValueError."""
    if key not in asked:
        return ""
    name = asked[key]
    if not (isinstance(name, str) and 0 < len(name) <= MAX_TAG_CHARACTERS):
        raise ValueError(f"custom_params.{PARAMETER}.{key} must be a text of 1 to {MAX_TAG_CHARACTERS} characters")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ValueError(f"custom_params.{PARAMETER}.{key} must be valid Unicode") from None
    return name


def wish_of(req: Any) -> RequestWish:
    """The wish of one of the scheduler's requests. Never raises for a wish that is wrong."""
    custom_params = req.sampling_params.custom_params
    if custom_params is None:
        return DEFAULT
    try:
        return request_wish(custom_params)
    except ValueError:
        return NO_TRACE
