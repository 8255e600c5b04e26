"""The operator's reads of a real S3 store: few at rest, safe against foreign records, held up by no other store."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from dataclasses import replace

import pytest

from aurora_api.v1alpha1.status import CandidatePhase, CandidateStatus, SpeculatorStatus
from aurora_operator import metrics
from aurora_operator.children.metadata import Owner
from aurora_operator.observe.observed import JobView
from aurora_operator.observe.secret_values import KEPT_SECONDS
from aurora_operator.observe.store import store_reader
from aurora_operator.observe.store.store_access import MAX_CALLS
from aurora_protocol.draft_records import ChannelReason
from aurora_store import Keys
from aurora_store.errors import MAX_ERROR_CHARACTERS, ObjectExists
from tests.assets.faulty_store import faulty_store, hang, whole
from tests.assets.s3 import S3
from tests.integration.operator.store_rig import Speculator
from tests.unit.operator.worlds import channel, evidence, registration, root_owner

POLL_SECONDS = 15.0


def requests() -> dict[str, float]:
    (family,) = metrics.STORE_REQUESTS.collect()
    return {sample.labels["operation"]: sample.value for sample in family.samples if sample.name.endswith("_total")}


def total(counts: dict[str, float]) -> float:
    return sum(counts.values())


async def test_a_speculator_at_rest_costs_ten_requests_a_minute(speculator: Speculator) -> None:
    await speculator.look()
    for _ in range(20):
        await speculator.look(POLL_SECONDS)
    before = total(requests())
    for _ in range(120):
        assert (await speculator.look(POLL_SECONDS)).channel is not None
    assert 60 <= total(requests()) - before <= 10 * 120 * POLL_SECONDS / 60


async def test_a_root_is_probed_before_it_is_read_and_once(s3: S3, owner: Owner) -> None:
    before = requests().get("create", 0)
    new = Speculator(s3, owner)
    assert (await new.look()).channel is None
    probed = requests()["create"]
    assert probed > before
    assert (await new.look(120)).ok
    assert requests()["create"] == probed


async def test_a_new_version_and_its_evidence_are_found(s3: S3, speculator: Speculator) -> None:
    assert (await speculator.look()).newest == 0
    registry = speculator.registry(s3)
    registry.register(registration(1))
    seconds = 0
    while (await speculator.look(5)).newest == 0:
        seconds += 5
        assert seconds < 80
    speculator.status = SpeculatorStatus(candidate=CandidateStatus(version=1, phase=CandidatePhase.VALIDATING))
    assert (await speculator.look(1)).evidence == ()
    registry.put_evidence(evidence(1))
    speculator.jobs = (JobView("j", 1, 1, succeeded=True),)
    (found,) = (await speculator.look(0.1)).evidence
    assert (found.version, found.attempt, found.verdict.kind) == (1, 1, evidence(1).verdict.kind)
    assert found.samples == (), "the operator does not keep raw samples"


async def test_an_operator_that_decides_upon_an_outdated_view_loses_the_race_and_reads_again(
    s3: S3, speculator: Speculator
) -> None:
    other, owner = Speculator(s3, speculator.owner), root_owner(speculator.owner)
    first = channel(0, owner=owner)
    for each in (speculator, other):
        assert (await each.look()).channel == first
    promoted = channel(1, epoch=2, previous=0, owner=owner)
    await other.access.advance(promoted)
    assert (await other.look()).channel == promoted, "our own write is known at once"
    assert (await speculator.look()).channel == first, "outdated"
    pinned = channel(0, epoch=2, owner=owner).model_copy(update={"reason": ChannelReason.PINNED})
    with pytest.raises(ObjectExists):
        await speculator.access.advance(pinned)
    assert (await speculator.look()).channel == promoted


@pytest.mark.parametrize(
    ("key", "data"),
    [
        ("registry/zzz.json", b"{}"),
        (f"registry/{'9' * 200}.json", b"{}"),
        ("registry/00000007.json", registration(8).to_json()),
        ("channel/00000009.json", channel(0, epoch=7).to_json()),
        ("channel/00000009.json", b"not json"),
        ("lineage/00000001.json", b'{"number": 1}'),
        ("registry/00000007.json", b" " * (2 << 20)),
        ("evidence/00000003/zzz.json", b"{}"),
        ("channel/99999999.json", channel(0, epoch=99_999_999).to_json()),
        ("channel/00001002.json", channel(0, epoch=1002).to_json()),
        ("registry/00001004.json", registration(1004).to_json()),
        ("evidence/00000003/99999999.json", evidence(3).model_copy(update={"attempt": 99_999_999}).to_json()),
    ],
    ids=[
        *("name", "digits", "version", "epoch", "json", "fields", "2 MiB", "evidence"),
        *("last epoch", "epoch out of sequence", "version out of sequence", "last attempt"),
    ],
)
async def test_a_foreign_record_is_named_and_its_removal_is_enough(
    s3: S3, speculator: Speculator, key: str, data: bytes
) -> None:
    registry = speculator.registry(s3)
    registry.register(registration(3))
    registry.objects.put(key, data)
    view = await speculator.look()
    assert (view.reason, view.channel) == ("InvalidRecord", None)
    assert key[:40] in view.error
    assert len(view.error) <= MAX_ERROR_CHARACTERS
    registry.objects.delete(key)
    view = await speculator.look(60)
    assert (view.error, view.newest, view.channel) == ("", 3, channel(0, owner=root_owner(speculator.owner)))


@pytest.mark.parametrize("data", [b"", b"{", b'{"phase": "Unknown"}', b" " * (2 << 20)])
async def test_an_unreadable_record_of_the_trainer_leaves_the_view_good(
    s3: S3, speculator: Speculator, data: bytes
) -> None:
    speculator.registry(s3).objects.put(Keys.TRAINER_STATUS, data)
    view = await speculator.look()
    assert view.ok
    assert view.channel == channel(0, owner=root_owner(speculator.owner))
    assert view.trainer is None


async def test_a_further_speculator_takes_little_memory(s3: S3, speculator: Speculator) -> None:
    registry = speculator.registry(s3)
    for version in range(1, 4):
        registry.register(registration(version))
        registry.put_evidence(evidence(version))
    registry.advance_channel(channel(2, epoch=2, previous=1, owner=root_owner(speculator.owner)))
    others = list[Speculator]()

    async def look() -> None:
        others.append(Speculator(s3, speculator.owner))
        others[-1].spec = speculator.spec  # the spec belongs to the cache of resources
        assert (await others[-1].look()).ok

    await look()
    tracemalloc.start()
    try:
        for _ in range(20):
            await look()
        gc.collect()
        taken = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    print(f"{taken / 20:.0f} bytes a speculator, its records included")
    assert taken / 20 < 55_000


async def test_corrected_settings_and_rotated_credentials_are_used(s3: S3, speculator: Speculator) -> None:
    good = speculator.spec
    with faulty_store(whole(503)) as fake:
        speculator.spec = Speculator.spec_at(fake.endpoint)
        assert (await speculator.look()).reason == "Unreachable"
        assert fake.requests
    speculator.spec = good
    assert (await speculator.look()).channel == channel(0, owner=root_owner(speculator.owner))
    speculator.api.secret = "wrong"  # noqa: S105 - made up
    assert "check the" in (await speculator.look(KEPT_SECONDS)).error
    speculator.api.secret = s3.secret_key
    assert (await speculator.look(KEPT_SECONDS)).ok


async def test_stores_that_hang_do_not_stop_a_healthy_speculator(
    s3: S3, speculator: Speculator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_reader, "REQUEST_SECONDS", 1.0)
    with faulty_store(hang) as fake:
        hostile = [
            Speculator(s3, replace(speculator.owner, name=f"evil-{n}"), endpoint=f"{fake.endpoint}/{n}")
            for n in range(2 * MAX_CALLS)
        ]
        looks = [asyncio.create_task(one.look()) for one in hostile]
        await asyncio.sleep(1)
        assert (await speculator.look()).ok
        assert {view.reason for view in await asyncio.gather(*looks)} == {"Unreachable"}
