"""Deletes the StatefulSet that an earlier operator made for the trainer.

Why: the trainer is a Deployment now. Without this step, both would train. The StatefulSet is looked for until the
Deployment exists, so it costs no call afterwards.

Invariant: only a StatefulSet with an owner reference to the speculator is deleted, by its uid.
"""

from __future__ import annotations

import logging

from aurora_operator.children.metadata import trainer_name
from aurora_operator.children.owner import Owner
from aurora_operator.errors import NotFound
from aurora_operator.io_pools import call_api
from aurora_operator.kubernetes_api import STATEFUL_SET, KubernetesApi

log = logging.getLogger(__name__)


async def delete_former_trainer(api: KubernetesApi, owner: Owner) -> None:
    """Delete the trainer's StatefulSet, if there is one. Its pod saves its state and ends. Safe to repeat.

    The Deployment's pod may start meanwhile. When both save the same epoch, the loser restarts and resumes.

    Raises :class:`Conflict` when somebody else replaced it meanwhile, and :class:`KubernetesError`.
    """
    name = trainer_name(owner)
    try:
        found = await call_api(api.get, STATEFUL_SET, owner.namespace, name)
        if not owner.owns(found):
            return
        await call_api(api.delete, STATEFUL_SET, owner.namespace, name, found["metadata"]["uid"])
    except NotFound:
        return
    log.info("%s: deleted the StatefulSet %s, because the trainer is a Deployment now", owner.full_name, name)
