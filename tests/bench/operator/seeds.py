"""Makes speculators that are at rest: each was trained for some time, and nothing is to be done.

The bench writes the store's records, and the keys that sign them, in place of the trainer, the validators and an
earlier operator. Versions 1 and 2 were measured and promoted, and version 3 was measured and refused. Pods serve
version 2. The trainer stand-in rewrites ``trainer/status.json`` as a trainer that waits for traces does.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

import aiohttp
import boto3
from botocore.config import Config
from tests.assets.s3 import S3
from tests.bench.operator.api_client import ApiClient, Object, in_parallel
from tests.bench.operator.fleet import Fleet, Speculator
from tests.unit.operator.worlds import channel, evidence, lineage, registration, samples

from aurora_operator.children.metadata import Owner
from aurora_operator.children.supporting_objects import new_keys
from aurora_protocol.draft_records import RootOwner
from aurora_protocol.evidence_records import Arm, MeasurementEnd, VerdictKind
from aurora_protocol.signatures import KeyName, SigningKeys, signed
from aurora_protocol.training_records import TrainerPhase, TrainerStatus
from aurora_store import Keys
from aurora_store.keys import owner_id, root

BUCKET = "operator-bench"
PREFIX = "aurora"
HEARTBEAT_SECONDS = 15.0
"""How often a trainer that waits for traces rewrites its status."""
PARALLEL_CALLS = 16
URL_SECONDS = 6 * 3600
PREVIOUS, ACTIVE, REFUSED = 1, 2, 3
EPOCH: Final = 3
"""The epoch in which version :data:`ACTIVE` was promoted."""
ROUNDS: Final = 10
"""Rounds of each measurement. Each has batches of three arms at two concurrencies."""
_REFUSED_SPEEDS: Final = {Arm.OFF: 100, Arm.ACTIVE: 135, Arm.CANDIDATE: 120}


def spec(endpoint: str, replicas: int) -> Object:
    """The spec of every speculator: defaults, with ``replicas`` pods."""
    store = {"bucket": BUCKET, "endpoint": endpoint, "credentials": {"secretRef": {"name": "s3"}}}
    return {"target": {"model": "org/model"}, "store": store, "serving": {"replicas": replicas}}


class Seeds:
    """Creates the resources and their records."""

    def __init__(self, api: ApiClient, s3: S3, fleet: Fleet) -> None:
        self._api, self._s3, self._fleet = api, s3, fleet
        self._client: Any = boto3.client(
            "s3",
            endpoint_url=s3.endpoint,
            region_name="us-east-1",
            aws_access_key_id=s3.access_key,
            aws_secret_access_key=s3.secret_key,
            config=Config(signature_version="s3v4", s3={"addressing_style": "path"}),
        )
        self._heartbeats: list[str] = []
        """A signed URL of each trainer's status. Signing once keeps a heartbeat cheap."""

    async def create(self, endpoint: str) -> None:
        """Create every speculator with its records. ``endpoint`` is the one that the operator uses."""
        self._client.create_bucket(Bucket=BUCKET)
        for namespace in sorted({each.namespace for each in self._fleet.members}):
            await self._namespace(namespace)
        async with aiohttp.ClientSession() as session:
            calls = [partial(self._speculator, session, each, endpoint) for each in self._fleet.members]
            await in_parallel(PARALLEL_CALLS, list(calls))

    async def _namespace(self, name: str) -> None:
        await self._api.create("/api/v1/namespaces", {"metadata": {"name": name}})
        secret = {"metadata": {"name": "s3"}, "stringData": self._s3.environment()}
        await self._api.create(f"/api/v1/namespaces/{name}/secrets", secret)

    async def _speculator(self, session: aiohttp.ClientSession, each: Speculator, endpoint: str) -> None:
        body: Object = {"apiVersion": "aurora.dev/v1alpha1", "kind": "AuroraSpeculator"}
        body |= {"metadata": {"name": each.name}, "spec": spec(endpoint, self._fleet.replicas)}
        created = await self._api.create(each.path.rpartition("/")[0], body)
        metadata = created["metadata"]
        folder = root(PREFIX, None, each.namespace, each.name)
        owner = Owner(each.namespace, each.name, metadata["uid"], metadata["generation"], metadata["resourceVersion"])
        secret = new_keys(owner)
        await self._api.create(f"/api/v1/namespaces/{each.namespace}/secrets", secret)
        keys = {name: secret["stringData"][name.value].encode() for name in KeyName}
        root_owner = RootOwner(
            id=owner_id(owner.uid), namespace=each.namespace, name=each.name, since=datetime.now(UTC)
        )
        records = trained_records(folder, root_owner, keys) | {Keys.TRAINER_STATUS: trainer_status()}
        for key, data in records.items():
            await _put(session, self._signed(f"{folder}/{key}"), data)
        self._heartbeats.append(self._signed(f"{folder}/{Keys.TRAINER_STATUS}"))

    def _signed(self, key: str) -> str:
        parameters = {"Bucket": BUCKET, "Key": key}
        return str(self._client.generate_presigned_url("put_object", parameters, ExpiresIn=URL_SECONDS))

    async def trainer_stand_in(self) -> None:
        """Rewrite every trainer's status every 15 s, spread evenly, until cancelled."""
        urls = random.sample(self._heartbeats, len(self._heartbeats))
        loop = asyncio.get_running_loop()
        async with aiohttp.ClientSession() as session:
            due = loop.time()
            while True:
                for url in urls:
                    await _put(session, url, trainer_status())
                    due += HEARTBEAT_SECONDS / len(urls)
                    await asyncio.sleep(max(0.0, due - loop.time()))


def trained_records(root: str, owner: RootOwner, keys: SigningKeys) -> dict[str, bytes]:
    """Key below ``root``, which ``owner`` owns -> record, the trainer's status left out."""
    plain = {Keys.lineage(1): lineage().to_json()}
    plain |= {Keys.registration(version): registration(version).to_json() for version in range(REFUSED + 1)}
    channels = {
        Keys.channel(1): channel(0, owner=owner),
        Keys.channel(2): channel(PREVIOUS, epoch=2, previous=0, owner=owner),
        Keys.channel(EPOCH): channel(ACTIVE, epoch=EPOCH, previous=PREVIOUS, owner=owner),
    }
    measured = (
        evidence(PREVIOUS, samples=samples(ROUNDS), end=MeasurementEnd.DECIDED),
        evidence(ACTIVE, active=PREVIOUS, samples=samples(ROUNDS), end=MeasurementEnd.DECIDED),
        evidence(
            REFUSED,
            VerdictKind.REJECT,
            active=ACTIVE,
            samples=samples(ROUNDS, _REFUSED_SPEEDS),
            end=MeasurementEnd.DECIDED,
        ),
    )
    return {
        **plain,
        **_signed(root, {key: record.to_json() for key, record in channels.items()}, keys[KeyName.CHANNEL]),
        **_signed(
            root,
            {Keys.evidence(each.version, each.attempt): each.to_json() for each in measured},
            keys[KeyName.EVIDENCE],
        ),
    }


def _signed(root: str, records: Mapping[str, bytes], secret: bytes) -> dict[str, bytes]:
    return {key: signed(data, f"{root}/{key}", secret) for key, data in records.items()}


def trainer_status() -> bytes:
    """The status of a trainer that learned everything and waits for traces."""
    status = TrainerStatus(
        lineage=1,
        phase=TrainerPhase.WAITING_FOR_TRACES,
        step=1000,
        shards=40,
        trained_tokens=1_000_000,
        held_out_acceptance_length=2.5,
        last_registered=REFUSED,
        updated=datetime.now(UTC),
    )
    return status.to_json()


async def _put(session: aiohttp.ClientSession, url: str, data: bytes) -> None:
    async with session.put(url, data=data) as response:
        response.raise_for_status()
