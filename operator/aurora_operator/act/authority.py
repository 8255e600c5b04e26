"""Decides whether this process may act on a speculator: it leads, and no other installation took the speculator over.

Replicas of one installation compete for one Lease, so they never act together. Two installations (a second Helm
release, or an operator that somebody started on a laptop) have different Leases. Without this module they would undo
each other's Deployments for ever.

The installation that acts writes its name into ``status.operator``, once, before it writes anything else. An
installation that finds another name there takes the speculator over, unless its own name stood there before: then the
other one took the speculator over, and this one stops acting on it.

Invariants:

- Each process takes a speculator over at most once, so two installations cannot alternate. The one that started last
  acts.
- Nothing is written while nothing changes: there is no heartbeat.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from enum import Enum
from importlib.metadata import version

from aurora_api.v1alpha1.status import OperatorIdentity, SpeculatorStatus
from aurora_operator.act.event_recorder import EventRecorder
from aurora_operator.act.status_writer import write_status
from aurora_operator.children.owner import Owner
from aurora_operator.io_pools import call_api
from aurora_operator.kubernetes_api import KubernetesApi
from aurora_operator.operator_config import OPERATOR_NAME, OperatorConfig
from aurora_operator.plan import EventNote

log = logging.getLogger(__name__)


class Claim(Enum):
    """The decision of an installation whether to act on a speculator."""

    HOLD = "its name is in the status: it acts"
    TAKE = "it writes its name into the status"
    YIELD = "it leaves the speculator to the other installation"


def decide(own: OperatorIdentity, named: OperatorIdentity | None, *, held_before: bool) -> Claim:
    """Decide for the installation ``own``, while the status names ``named``.

    Args:
        held_before: this process has seen its own installation in the status of this speculator before.
    """
    if named == own:
        return Claim.HOLD
    if named is None or named.installation == own.installation:
        return Claim.TAKE
    return Claim.YIELD if held_before else Claim.TAKE


class Authority:
    """The right of this process to act, for all speculators."""

    def __init__(self, api: KubernetesApi, config: OperatorConfig, ensure_leading: Callable[[], None]) -> None:
        self.ensure_leading = ensure_leading
        """Raises :class:`NotLeading` unless this process leads at this moment. Called before every act."""
        self._api = api
        self._own = OperatorIdentity(installation=config.installation, version=version(OPERATOR_NAME))
        self._events = EventRecorder(api)
        self._held: dict[tuple[str, str], str] = {}
        self._yielded: dict[tuple[str, str], str] = {}
        """Namespace and name of speculators -> uid. The process remembers them while it does not lead, too."""

    async def claim(self, owner: Owner, status: SpeculatorStatus) -> Claim:
        """Decide about one speculator, and carry the decision out.

        HOLD: go on. TAKE: the status was written, so observe again first. YIELD: do nothing to this speculator.

        Raises :class:`Conflict` when the speculator changed since it was read, :class:`KubernetesError`.
        """
        key = (owner.namespace, owner.name)
        made = decide(self._own, status.operator, held_before=self._held.get(key) == owner.uid)
        if made is Claim.YIELD:
            await self._give_way(owner, status.operator)
            return made
        if made is Claim.TAKE:
            await call_api(write_status, self._api, owner, status.model_copy(update={"operator": self._own}))
            if status.operator is not None:
                log.info("%s: %s acts from now on, instead of %s", owner.full_name, self._own, status.operator)
        self._held[key] = owner.uid
        self._yielded.pop(key, None)
        return made

    def forget(self, namespace: str, name: str) -> None:
        """Free what is remembered about a speculator that is gone."""
        self._held.pop((namespace, name), None)
        self._yielded.pop((namespace, name), None)

    async def _give_way(self, owner: Owner, other: OperatorIdentity | None) -> None:
        """Say once that another installation acts."""
        key = (owner.namespace, owner.name)
        if self._yielded.get(key) == owner.uid:
            return
        self._yielded[key] = owner.uid
        message = (
            f"{other} took this speculator over from {self._own}, which no longer acts on it. Run only one of the two "
            "here: uninstall one, or give each its own namespaces. The one that is started last acts."
        )
        log.warning("%s: %s", owner.full_name, message)
        await self._events.post(EventNote("OperatorDisplaced", message, warning=True), owner)
