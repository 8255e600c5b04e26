"""One observation, with extra parts that acting needs. Planning must not depend on the extra parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from aurora_operator.kubernetes_api import Object
from aurora_operator.observe.observed import Observed


@dataclass(frozen=True)
class Snapshot:
    """The result of :meth:`Observer.observe`."""

    observed: Observed
    live_children: Mapping[tuple[str, str], Object]
    """(kind, name) -> the child as the API server stores it. Only children that this speculator owns, and pods."""
    agent_token: str = field(repr=False)
    """The agents' bearer token; empty while our Secret does not exist."""
