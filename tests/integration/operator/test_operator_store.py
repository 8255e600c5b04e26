"""The operator's reads of a real S3 store: few at rest, safe against foreign records, held up by no other store."""

from __future__ import annotations

import asyncio
import gc
import time
import tracemalloc
from dataclasses import replace
from typing import Any

import pytest

from aurora_api.v1alpha1.status import CandidatePhase, CandidateStatus, SpeculatorStatus
from aurora_operator import metrics
from aurora_operator.children.owner import Owner
from aurora_operator.io_pools import StorePools
from aurora_operator.observe.observed import JobView, UserRequests
from aurora_protocol.draft_records import ChannelReason
from aurora_store import Keys
from aurora_store.errors import MAX_ERROR_CHARACTERS, ObjectExists
from tests.assets.faulty_store import drip_body, drip_headers, endless_body, faulty_store, whole
from tests.assets.s3 import S3
from tests.integration.operator.store_rig import Speculator, trainer_status
from tests.unit.operator.worlds import channel, evidence, lineage, registration

POLL_SECONDS = 15.0
HOSTILE = 64


def requests() -> dict[str, float]:
    (family,) = metrics.STORE_REQUESTS.collect()
    return {sample.labels["operation"]: sample.value for sample in family.samples if sample.name.endswith("_total")}


def total(counts: dict[str, float]) -> float:
    return sum(counts.values())


async def test_a_speculator_at_rest_costs_at_most_two_requests_a_minute(speculator: Speculator) -> None:
    for _ in range(2):
        assert (await speculator.look(120)).ok, "the second read of a process probes the store"
    times, before = list[float](), total(requests())
    for _ in range(240):
        view = await speculator.look(POLL_SECONDS)
        made, before = total(requests()) - before, total(requests())
        times += [speculator.clock.seconds] * int(made)
        assert view.channel is not None
    assert times, "the store is still read"
    for start in times:
        assert sum(start <= at < start + 60 for at in times) <= 2


async def test_a_root_with_a_channel_is_read_first_and_probed_with_the_second_read(speculator: Speculator) -> None:
    before = requests()
    assert (await speculator.look()).channel == channel(0)
    first = requests()
    assert {name for name, count in first.items() if count > before.get(name, 0)} == {"get", "list"}
    await speculator.look(120)
    assert requests()["create"] > first.get("create", 0)


async def test_the_first_read_of_a_root_lists_nothing_that_the_trainer_names(s3: S3, speculator: Speculator) -> None:
    speculator.registry(s3).put_trainer_status(trainer_status(lineage=1, last_registered=0))
    before = requests().get("list", 0)
    view = await speculator.look()
    assert (view.lineage, view.newest) == (lineage(), 0)
    assert requests()["list"] - before == 1, "the channel alone, which the trainer does not know"


@pytest.mark.parametrize(
    "named", [{"lineage": 7}, {"last_registered": 7}, {"lineage": 2**40, "last_registered": 2**40}]
)
async def test_a_trainer_that_names_records_that_are_not_there_hides_no_record(
    s3: S3, speculator: Speculator, named: dict[str, int]
) -> None:
    registry = speculator.registry(s3)
    registry.register(registration(1))
    registry.put_trainer_status(trainer_status(**named))
    view = await speculator.look()
    for _ in range(2):
        if (view.lineage, view.newest) != (lineage(), 1):
            view = await speculator.look(120)
    assert view.ok
    assert (view.lineage, view.newest) == (lineage(), 1)


async def test_a_new_root_is_probed_before_it_is_read(s3: S3, owner: Owner) -> None:
    before = requests().get("create", 0)
    view = await Speculator(s3, owner).look()
    assert view.ok
    assert view.channel is None
    assert requests()["create"] > before


async def test_nothing_is_written_to_a_root_that_was_not_probed(speculator: Speculator) -> None:
    await speculator.look()
    before = requests()
    await speculator.access.advance(channel(0, epoch=2), lambda: None)
    assert requests()["create"] >= before.get("create", 0) + 3, "two of the probe, and the record"


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
    before = requests()
    speculator.jobs = (JobView("j", 1, 1, succeeded=True),)
    (found,) = (await speculator.look(0.1)).evidence
    assert (found.version, found.attempt, found.verdict.kind) == (1, 1, evidence(1).verdict.kind)
    assert found.samples == (), "the operator does not keep raw samples"
    assert requests()["list"] - before["list"] <= 3, "lineage, channel and registry; evidence is read by its key"


async def test_a_registration_out_of_sequence_is_named_although_the_trainer_names_it(
    s3: S3, speculator: Speculator
) -> None:
    registry = speculator.registry(s3)
    registry.register(registration(99_999_999))
    registry.put_trainer_status(trainer_status(last_registered=99_999_999))
    view = await speculator.look()
    assert view.reason == "InvalidRecord"
    assert "registry/99999999.json" in view.error


async def test_the_trainers_record_hints_at_a_new_version(s3: S3, speculator: Speculator) -> None:
    await speculator.look()
    for _ in range(2):  # two listings of the registry; the next turn lists the channel
        await speculator.look(75)
    registry = speculator.registry(s3)
    registry.register(registration(1))
    registry.put_trainer_status(trainer_status(last_registered=1))
    assert (await speculator.look(75)).newest == 1


async def test_an_operator_that_decides_upon_an_outdated_view_loses_the_race_and_reads_again(
    s3: S3, speculator: Speculator
) -> None:
    other = Speculator(s3, speculator.owner)
    for each in (speculator, other):
        assert (await each.look()).channel == channel(0)
    promoted = channel(1, epoch=2, previous=0)
    await other.access.advance(promoted, lambda: None)
    assert (await other.look()).channel == promoted, "our own write is known at once"
    assert (await speculator.look()).channel == channel(0), "outdated"
    pinned = channel(0, epoch=2).model_copy(update={"reason": ChannelReason.PINNED})
    with pytest.raises(ObjectExists):
        await speculator.access.advance(pinned, lambda: None)
    assert (await speculator.look()).channel == promoted


@pytest.mark.parametrize(
    ("key", "data"),
    [
        ("registry/zzz.json", b"{}"),
        (f"registry/{'9' * 200}.json", b"{}"),
        ("registry/00000007.json", registration(8).to_json()),
        ("channel/00000009.json", channel(0, epoch=7).to_json()),
        ("channel/00000009.json", b"not json"),
        ("lineage/00000002.json", b'{"number": 2}'),
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
    assert (view.error, view.newest, view.channel) == ("", 3, channel(0))


async def test_a_version_of_5000_digits_is_just_not_there(speculator: Speculator) -> None:
    speculator.status = SpeculatorStatus(rejected=[])
    speculator.requests = UserRequests(promote=10**4200)
    view = await speculator.look()
    assert view.ok
    assert set(view.registrations) == {0}


@pytest.mark.parametrize("data", [b"", b"{", b'{"phase": "Unknown"}', b" " * (2 << 20)])
async def test_an_unreadable_record_of_the_trainer_leaves_the_view_good(
    s3: S3, speculator: Speculator, data: bytes
) -> None:
    speculator.registry(s3).objects.put(Keys.TRAINER_STATUS, data)
    view = await speculator.look()
    assert view.ok
    assert view.channel == channel(0)
    assert view.trainer is None
    assert Keys.TRAINER_STATUS in view.trainer_error


async def test_a_further_speculator_takes_little_memory(s3: S3, speculator: Speculator) -> None:
    registry = speculator.registry(s3)
    for version in range(1, 4):
        registry.register(registration(version))
        registry.put_evidence(evidence(version))
    registry.advance_channel(channel(2, epoch=2, previous=1))
    pools, others = StorePools(), list[Speculator]()

    async def look() -> None:
        others.append(Speculator(s3, speculator.owner, pools=pools))
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


async def test_corrected_settings_do_not_wait_for_a_call_with_the_former_ones(s3: S3, speculator: Speculator) -> None:
    good = speculator.spec
    with faulty_store(drip_headers) as fake:
        speculator.spec = Speculator.spec_at(fake.endpoint)
        hanging = asyncio.create_task(speculator.look())
        await asyncio.sleep(0.5)
        assert fake.requests
        hanging.cancel()
        began = time.monotonic()
        speculator.spec = good
        assert (await speculator.look()).channel == channel(0)
        assert time.monotonic() - began < 5
    speculator.api.secret = "wrong"  # noqa: S105 - made up
    speculator.secrets.forget()  # as after a change of the spec
    assert "check the credentials" in (await speculator.look()).error
    speculator.api.secret = s3.secret_key
    assert (await speculator.look(3)).ok, "refused credentials are read again"


async def test_a_foreign_error_text_does_not_reach_the_view(s3: S3, owner: Owner) -> None:
    body = f"<?xml version='1.0'?><Error><Code>{'x' * 42_000}</Code><Message>{'y' * 42_000}</Message></Error>"
    for answer in (whole(403, body.encode()), whole(302, Location="http://10.0.0.1/"), whole(200, b"hello")):
        with faulty_store(answer) as fake:
            view = await Speculator(s3, owner, endpoint=fake.endpoint).look()
        assert not view.ok
        assert 0 < len(view.error) <= MAX_ERROR_CHARACTERS


@pytest.mark.parametrize("answer", [drip_headers, drip_body, endless_body(200)], ids=["headers", "body", "endless"])
async def test_64_hostile_stores_do_not_delay_a_healthy_speculator(s3: S3, speculator: Speculator, answer: Any) -> None:
    pools = StorePools()
    healthy = Speculator(s3, speculator.owner, pools=pools)
    with faulty_store(answer) as fake:
        hostile = [
            Speculator(s3, replace(speculator.owner, name=f"evil-{n}"), endpoint=f"{fake.endpoint}/{n}", pools=pools)
            for n in range(HOSTILE)
        ]
        looks = [asyncio.create_task(one.look()) for one in hostile]
        await asyncio.sleep(3)
        began = time.monotonic()
        assert (await healthy.look()).ok
        assert time.monotonic() - began < 10, "64 clients are created on the same cores meanwhile"
        for task in looks:
            task.cancel()
        for _ in range(HOSTILE):
            made_and_deleted = asyncio.create_task(
                Speculator(s3, speculator.owner, endpoint=fake.endpoint, pools=pools).look()
            )
            await asyncio.sleep(0.05)
            made_and_deleted.cancel()
        began = time.monotonic()
        assert (await Speculator(s3, speculator.owner, pools=pools).look()).ok
        assert time.monotonic() - began < 10
