"""The pods' ServiceAccount, without a token, and the Secrets with the generated keys.

Invariant: the keys are generated once. A Secret is created and never applied, so a restarted operator cannot replace
keys that running pods use.
"""

from __future__ import annotations

import secrets

from aurora_api.v1alpha1.spec import SpeculatorSpec
from aurora_api.v1alpha1.store import StoreRole
from aurora_operator.children.metadata import child, keys_name, signing_keys_name
from aurora_operator.children.owner import Owner
from aurora_operator.kubernetes_api import Object
from aurora_protocol.pod_settings import ADMIN_KEY, AGENT_TOKEN
from aurora_protocol.signatures import all_keys

TRUSTED_RECORD = "trusted-record"
"""Item of the Secret with the signing keys: the digest of the channel's newest record when the keys were made.

Empty: the channel was empty.
"""


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
    data = {ADMIN_KEY: secrets.token_urlsafe(32), AGENT_TOKEN: secrets.token_urlsafe(32)}
    return child(owner, "v1", "Secret", keys_name(owner), type="Opaque", stringData=data)


def new_signing_keys(owner: Owner, trusted_record: str) -> Object:
    """A Secret with newly generated keys that sign the store's records; every call returns other keys.

    Args:
        trusted_record: digest of the channel's newest record, which is trusted without a signature of these keys. No
            other record is, also none with the same number.
    """
    keys = all_keys(secrets.token_urlsafe(32).encode())
    data = {name.value: key.decode() for name, key in keys.items()} | {TRUSTED_RECORD: trusted_record}
    return child(owner, "v1", "Secret", signing_keys_name(owner), type="Opaque", stringData=data)
