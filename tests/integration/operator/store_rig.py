"""One speculator's way to a real S3 store, as the operator takes it, at a virtual time."""

from __future__ import annotations

import base64
from typing import Any, cast

from aurora_api.v1alpha1.spec import SpeculatorSpec
from aurora_api.v1alpha1.status import SpeculatorStatus
from aurora_operator.children.common_pod import store_settings
from aurora_operator.children.metadata import Owner, keys_name
from aurora_operator.observe.observed import JobView, StoreView
from aurora_operator.observe.secret_values import SecretReader
from aurora_operator.observe.store.store_access import StoreAccess
from aurora_operator.observe.store.store_reader import store_needs
from aurora_protocol.training_records import TrainerPhase, TrainerStatus
from aurora_runtime.pod_registry import PodRegistry
from aurora_store import ObjectStore, StoreConfig
from aurora_store.store_policy import StorePolicy
from tests.assets.s3 import S3
from tests.assets.signing import KEYS, secret_data
from tests.unit.operator.worlds import NOW, channel, lineage, registration, root_owner, spec

BUCKET = "operator-reads"
SIGNING_KEYS = secret_data()


class FakeApi:
    """Fake API server that knows the Secrets with the store's keys and with the signing keys, and nothing else."""

    def __init__(self, owner: Owner, access: str, secret: str) -> None:
        self.owner, self.access, self.secret = owner, access, secret
        self.signing: dict[str, str] | None = SIGNING_KEYS
        """The data of the Secret with the signing keys. None: there is none."""

    async def find(self, _kind: object, _namespace: str, name: str) -> dict[str, Any] | None:
        if name == keys_name(self.owner):
            if self.signing is None:
                return None
            metadata = {"resourceVersion": "1", "ownerReferences": [{"uid": self.owner.uid, "controller": True}]}
            return {"kind": "Secret", "metadata": metadata, "data": self.signing}
        keys = {"AWS_ACCESS_KEY_ID": self.access, "AWS_SECRET_ACCESS_KEY": self.secret}
        data = {name: base64.b64encode(value.encode()) for name, value in keys.items()}
        return {"kind": "Secret", "metadata": {"resourceVersion": self.secret}, "data": data}


class Clock:
    """Virtual monotonic time."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


class Speculator:
    """One speculator's way to its store, at a time that a test advances."""

    def __init__(self, s3: S3, owner: Owner, *, endpoint: str | None = None) -> None:
        self.owner, self.clock = owner, Clock()
        self.api = FakeApi(owner, s3.access_key, s3.secret_key)
        self.secrets = SecretReader(cast(Any, self.api), owner.namespace, self.clock)
        self.access = StoreAccess(self.secrets, StorePolicy(), self.clock)
        self.spec, self.status = self.spec_at(endpoint or s3.endpoint), SpeculatorStatus()
        self.jobs: tuple[JobView, ...] = ()
        self.abort: int | None = None

    @staticmethod
    def spec_at(endpoint: str) -> SpeculatorSpec:
        return spec(store={"bucket": BUCKET, "endpoint": endpoint, "credentials": {"secretRef": {"name": "s3"}}})

    async def look(self, later: float = 0.0) -> StoreView:
        """The view ``later`` seconds from now."""
        self.clock.seconds += later
        needs = store_needs(self.owner, self.spec, self.status, self.jobs, self.abort)
        return await self.access.view(self.owner, self.spec, needs)

    def registry(self, s3: S3) -> PodRegistry:
        """The records as trainer and validator write them."""
        settings = store_settings(self.owner, self.spec)
        return PodRegistry(
            ObjectStore(StoreConfig(BUCKET, settings.root, s3.endpoint, None, s3.access_key, s3.secret_key)), KEYS
        )


def trainer_status(**more: Any) -> TrainerStatus:
    return TrainerStatus(
        phase=TrainerPhase.WAITING_FOR_TRACES, step=1, shards=1, trained_tokens=1, updated=NOW
    ).model_copy(update=more)


def speculator_with_a_draft(s3: S3, owner: Owner) -> Speculator:
    """A speculator whose initial draft is active."""
    made = Speculator(s3, owner)
    registry = made.registry(s3)
    registry.objects.ensure_bucket()
    registry.create_lineage(lineage())
    registry.register(registration(0))
    registry.advance_channel(channel(0, owner=root_owner(owner)))
    registry.put_trainer_status(trainer_status())
    return made
