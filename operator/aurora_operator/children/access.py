"""The pods' ServiceAccount, without a token, and the Secret with the generated keys.

Invariant: the keys are generated once. The Secret is created and never applied, so a restarted operator cannot replace
keys that running pods use.
"""

from __future__ import annotations

import secrets

from aurora_api.v1alpha1.spec import SpeculatorSpec
from aurora_api.v1alpha1.store import StoreRole
from aurora_operator.children.metadata import child, keys_name
from aurora_operator.children.owner import Owner
from aurora_operator.kubernetes_api import Object
from aurora_protocol.pod_settings import ADMIN_KEY, AGENT_TOKEN
from aurora_protocol.signatures import KeyName


def service_accounts(owner: Owner, spec: SpeculatorSpec) -> list[Object]:
    """Our own ServiceAccount; none when the user names one with an identity for the pods of every role."""
    if all(spec.store.credentials.of(role).service_account_name for role in StoreRole):
        return []
    return [child(owner, "v1", "ServiceAccount", owner.name, automountServiceAccountToken=False)]


def new_keys(owner: Owner) -> Object:
    """A Secret with newly generated random keys; every call returns other keys.

    The init container of each pod derives the traffic secret from the Secret's admin key, and makes an admin key of its
    own for the pod's engine.
    """
    names = (ADMIN_KEY, AGENT_TOKEN, *(name.value for name in KeyName))
    data = {name: secrets.token_urlsafe(32) for name in names}
    return child(owner, "v1", "Secret", keys_name(owner), type="Opaque", stringData=data)
