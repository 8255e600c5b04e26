"""Of two installations one acts. The other one asks, yields, says so, and acts once nobody answers."""

from __future__ import annotations

import logging
from collections import Counter

import pytest
from prometheus_client import REGISTRY

from aurora_operator.act.authority import MIN_WAIT_SECONDS, UNNAMED_SECONDS
from aurora_operator.act.contest import CHALLENGE_SECONDS, MAX_PAUSE_SECONDS, Claim
from aurora_operator.errors import Conflict, KubernetesError
from tests.unit.operator.act.status_server import Clock, Installation, StatusServer, installation, names


def yielded() -> float | None:
    """What the metric of the installation that was made last says."""
    return REGISTRY.get_sample_value("aurora_operator_yielded_speculators")


@pytest.fixture(name="clock")
def _clock() -> Clock:
    return Clock()


@pytest.fixture(name="api")
def _api() -> StatusServer:
    return StatusServer()


async def acting(api: StatusServer, clock: Clock, namespace: str = "one") -> Installation:
    """An installation that acts on the speculator."""
    made = installation(api, clock, namespace)
    assert await made.look() is Claim.TAKE
    assert await made.look() is Claim.HOLD
    return made


async def test_an_installation_that_acts_writes_its_name_once(api: StatusServer, clock: Clock) -> None:
    first = await acting(api, clock)
    for _ in range(5):
        clock.seconds += 60
        assert await first.look() is Claim.HOLD
    assert api.writes == ["set operator", "remove operatorChallenge"], "one write, and no heartbeat"


async def test_a_newcomer_yields_to_an_installation_that_answers_and_says_so(
    api: StatusServer, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    api.status = {"rollout": {"phase": "A phase that this version does not know"}, "updated": "2/2"}
    first = await acting(api, clock)
    second = installation(api, clock, "two")
    assert await second.look() is Claim.WAIT
    assert (api.operator, api.challenge, yielded()) == ("one/aurora-operator", "two/aurora-operator", 0)
    assert await first.look() is Claim.HOLD
    assert api.challenge == "", "answered"
    assert await second.look() is Claim.YIELD
    assert yielded() == 1
    (event,) = api.events
    assert event.startswith("Warning OperatorYielded: operator one/aurora-operator (version ")
    assert "operator two/aurora-operator (version " in event
    assert "uninstall one" in event
    assert [record.getMessage() for record in caplog.records] == [f"team/chat: {event.split(': ', 1)[1]}"]
    writes = len(api.writes)
    while second.wait_seconds > MIN_WAIT_SECONDS:
        assert await second.look() is Claim.YIELD
        assert await first.look() is Claim.HOLD
        clock.seconds += 5
    assert len(api.writes) == writes, "nothing is written during the pause"
    assert api.status["rollout"] == {"phase": "A phase that this version does not know"}, "nothing else is rewritten"


async def test_a_newcomer_acts_by_itself_once_the_other_installation_is_gone(api: StatusServer, clock: Clock) -> None:
    """As long as it may take: the longest pause, and the time of a challenge."""
    first = await acting(api, clock)
    second = installation(api, clock, "two")
    for _ in range(8):
        assert await second.look() is Claim.WAIT
        await first.look()
        assert await second.look() is Claim.YIELD
        clock.seconds += second.wait_seconds
    gone_at_seconds = clock.seconds
    while await second.look() is not Claim.TAKE:
        clock.seconds += second.wait_seconds
    assert clock.seconds - gone_at_seconds <= MAX_PAUSE_SECONDS + CHALLENGE_SECONDS + 1
    assert await second.look() is Claim.HOLD
    assert (api.operator, api.challenge, yielded()) == ("two/aurora-operator", "", 0)
    clock.seconds += 1
    assert await first.look() is Claim.WAIT, "it was cut off, and asks like any other newcomer"
    await second.look()
    assert await first.look() is Claim.YIELD
    assert "operator two/aurora-operator" in api.events[-1]


async def test_an_event_that_is_refused_is_posted_after_the_next_answer(api: StatusServer, clock: Clock) -> None:
    first, second = await acting(api, clock), installation(api, clock, "two")
    await second.look()
    await first.look()
    api.faults.append(KubernetesError("forbidden", 403))
    assert await second.look() is Claim.YIELD
    assert api.events == []
    clock.seconds += second.wait_seconds
    await second.look()
    await first.look()
    assert await second.look() is Claim.YIELD
    assert len(api.events) == 1


async def test_of_two_newcomers_one_takes_over_and_the_other_yields(api: StatusServer, clock: Clock) -> None:
    api.change(operator=names("gone"))
    newcomers = [installation(api, clock, "one"), installation(api, clock, "two")]
    assert [await newcomer.look() for newcomer in newcomers] == [Claim.WAIT, Claim.WAIT]
    assert Counter(api.writes) == {"set operatorChallenge": 1}, "one challenge is enough"
    clock.seconds += CHALLENGE_SECONDS
    outdated = api.seen
    assert await newcomers[0].look() is Claim.TAKE
    with pytest.raises(Conflict):
        await newcomers[1].authority.claim(*outdated)
    assert await newcomers[1].look() is Claim.WAIT
    assert await newcomers[0].look() is Claim.HOLD
    assert await newcomers[1].look() is Claim.YIELD
    assert api.operator == "one/aurora-operator"


async def test_an_installation_that_cannot_write_its_answers_keeps_its_speculator(
    api: StatusServer, clock: Clock
) -> None:
    """An admission webhook that fails lets nobody write. The Lease is renewed meanwhile."""
    first, second = await acting(api, clock), installation(api, clock, "two")
    assert await second.look() is Claim.WAIT
    for _ in range(3):
        clock.seconds += CHALLENGE_SECONDS
        api.faults.append(KubernetesError("the webhook does not answer", 503))
        with pytest.raises(KubernetesError):
            await second.look()
    clock.seconds += CHALLENGE_SECONDS - 1
    assert await second.look() is Claim.WAIT, "since the last failure the first one may have been able to answer"
    assert await first.look() is Claim.HOLD
    assert await second.look() is Claim.YIELD


async def test_a_standby_that_takes_its_lease_begins_with_a_challenge(api: StatusServer, clock: Clock) -> None:
    first, second = await acting(api, clock), installation(api, clock, "two")
    await second.look()
    clock.seconds += CHALLENGE_SECONDS
    await second.authority.stop()
    assert await second.look() is Claim.WAIT, "the time before this process led again does not count"
    await first.look()
    assert await second.look() is Claim.YIELD
    await second.authority.stop()
    assert yielded() == 0, "nothing is remembered of speculators that go while another replica leads"


async def test_a_claim_that_loses_the_race_is_made_again(api: StatusServer, clock: Clock) -> None:
    outdated = api.seen
    await acting(api, clock)
    with pytest.raises(Conflict):
        await installation(api, clock, "two").authority.claim(*outdated)
    assert api.operator == "one/aurora-operator"


async def test_a_former_version_of_the_same_installation_is_replaced_at_once(api: StatusServer, clock: Clock) -> None:
    api.change(operator=names("one", version="former"), operatorChallenge=names("two") | {"nonce": "n"})
    assert await installation(api, clock, "one").look() is Claim.TAKE
    assert api.challenge == ""


async def test_an_installation_whose_name_is_dropped_acts_as_if_alone_and_says_so(
    api: StatusServer, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    api.dropped = frozenset({"operator", "operatorChallenge"})
    one = installation(api, clock, "one")
    for _ in range(10):
        assert await one.look() is Claim.HOLD
    assert Counter(api.writes)["set operator"] == 1
    (record,) = caplog.records
    assert "cannot write status.operator" in record.getMessage()
    assert "CRD" in record.getMessage()
    clock.seconds += UNNAMED_SECONDS
    assert await one.look() is Claim.HOLD
    api.dropped = frozenset()
    assert await one.look() is Claim.HOLD, "it tries again later"
    clock.seconds += UNNAMED_SECONDS
    assert await one.look() is Claim.TAKE
    assert api.operator == "one/aurora-operator"


@pytest.mark.parametrize("dropped", ["operatorChallenge", "operator"])
async def test_an_installation_whose_challenge_or_claim_is_dropped_yields_with_the_reason(
    api: StatusServer, clock: Clock, dropped: str
) -> None:
    api.change(operator=names("gone"))
    api.dropped = frozenset({dropped})
    newcomer = installation(api, clock, "one")
    claim = await newcomer.look()
    if dropped == "operator":
        assert claim is Claim.WAIT
        clock.seconds += CHALLENGE_SECONDS
        claim = await newcomer.look()
    assert claim is Claim.YIELD
    assert newcomer.wait_seconds > 10, "no hot loop"
    assert yielded() == 1
    (event,) = api.events
    assert (
        f"cannot write {'its name into status.operator' if dropped == 'operator' else 'status.operatorChallenge'}"
        in event
    )
    assert "CRD" in event
