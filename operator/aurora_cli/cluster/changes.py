"""Sends a decision to the API server, so that it never overwrites a newer decision of somebody else.

The operator writes the status every few seconds, so a resourceVersion is often outdated although no person decided
anything. A refused patch is therefore decided again on the present object, as long as all that people decided is the
same. If somebody decided meanwhile, the command ends and says what changed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from aurora_cli.cluster.cluster import Cluster
from aurora_cli.cluster.kubernetes_api import Object
from aurora_cli.decisions.change import Change, decided, differences
from aurora_cli.errors import Conflict
from aurora_cli.speculator import Speculator

ATTEMPTS: Final = 8
"""How often a patch is sent, if each attempt meets a new status of the operator."""


@dataclass(frozen=True)
class Decision:
    """A change that the API server accepted, or that it would accept (dry run)."""

    change: Change
    before: Speculator
    after: Object
    """The object as the API server returned it; the object that was read, where nothing is to be changed."""


def decide(cluster: Cluster, name: str, decision: Callable[[Speculator], Change], *, dry_run: bool) -> Decision:
    """Read the speculator, decide, and patch it.

    Raises :class:`Refused` when ``decision`` does, :class:`Conflict` when somebody decided at the same time, and
    another :class:`ClusterError` when the API server refuses.
    """
    first = current = cluster.speculator(name)
    for _ in range(ATTEMPTS):
        change = decision(current)
        if not change.fields:
            return Decision(change, current, dict(current.raw))
        try:
            return Decision(change, current, cluster.patch(name, change.patch(current), dry_run=dry_run))
        except Conflict:
            current = cluster.speculator(name)
            if meanwhile := differences(decided(first), decided(current)):
                what = "; ".join(map(str, meanwhile))
                raise Conflict(f"nothing was changed, because somebody changed {name} meanwhile: {what}") from None
    raise Conflict(f"{name} changes all the time, and {ATTEMPTS} patches were refused; try again")
