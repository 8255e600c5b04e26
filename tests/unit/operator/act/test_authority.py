"""Of two installations of the operator one acts. The other says so and stops. Neither writes while nothing changes."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace

import pytest

from aurora_api.v1alpha1.status import OperatorIdentity, SpeculatorStatus
from aurora_operator.act.authority import Authority, Claim, decide
from aurora_operator.errors import Conflict
from aurora_operator.kubernetes_api import Object
from tests.unit.operator.worlds import CONFIG, OWNER

OURS = OperatorIdentity(installation="aurora-system/aurora-operator", version="1")
NEWER = OURS.model_copy(update={"version": "2"})
THEIRS = OperatorIdentity(installation="laptop/aurora-operator", version="9")


@pytest.mark.parametrize(
    ("named", "held_before", "claim"),
    [
        (OURS, False, Claim.HOLD),
        (OURS, True, Claim.HOLD),
        (None, False, Claim.TAKE),
        (None, True, Claim.TAKE),
        (NEWER, True, Claim.TAKE),
        (THEIRS, False, Claim.TAKE),
        (THEIRS, True, Claim.YIELD),
    ],
)
def test_an_installation_yields_only_what_it_held_before(
    named: OperatorIdentity | None, held_before: bool, claim: Claim
) -> None:
    assert decide(OURS, named, held_before=held_before) is claim


@dataclass
class FakeApi:
    """An API server with the status of one speculator."""

    status: SpeculatorStatus = field(default_factory=SpeculatorStatus)
    writes: list[str] = field(default_factory=list)

    def apply(self, obj: Object, *, subresource: str = "") -> Object:
        assert subresource == "status"
        assert obj["metadata"]["resourceVersion"] == OWNER.resource_version
        self.writes.append("status")
        self.status = SpeculatorStatus.model_validate(obj["status"])
        return obj

    def create(self, obj: Object) -> Object:
        self.writes.append(f"{obj['type']} {obj['reason']}: {obj['message']}")
        return obj


def authority(api: FakeApi, namespace: str) -> Authority:
    return Authority(api, replace(CONFIG, operator_namespace=namespace), lambda: None)  # type: ignore[arg-type]


async def settle(api: FakeApi, *installations: Authority) -> list[Claim]:
    """Let the installations look in turn until none of them changes its mind."""
    claims: list[Claim] = []
    for _ in range(10):
        now = [await installation.claim(OWNER, api.status) for installation in installations]
        if now == claims:
            return now
        claims = now
    raise AssertionError("the installations alternate")


async def test_the_installation_that_started_last_acts_and_the_other_posts_one_event(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    api = FakeApi()
    first, second = authority(api, "one"), authority(api, "two")
    assert await settle(api, first) == [Claim.HOLD]
    assert await settle(api, first, second) == [Claim.YIELD, Claim.HOLD]
    event = api.writes[-1]
    assert event.startswith("Warning OperatorDisplaced: operator two/aurora-operator (version ")
    assert "took this speculator over from operator one/aurora-operator (version " in event
    assert "uninstall one" in event
    assert [record.getMessage() for record in caplog.records] == [f"team/chat: {event.split(': ', 1)[1]}"]
    written = len(api.writes)
    for _ in range(5):
        await first.claim(OWNER, api.status)
        await second.claim(OWNER, api.status)
    assert len(api.writes) == written, "nothing is written while nothing changes"


async def test_two_installations_that_start_together_do_not_alternate() -> None:
    api = FakeApi()
    claims = await settle(api, authority(api, "one"), authority(api, "two"))
    assert sorted(claim.name for claim in claims) == ["HOLD", "YIELD"]


async def test_an_installation_acts_again_when_the_other_name_is_gone_or_its_own_process_is_new() -> None:
    api = FakeApi()
    first, second = authority(api, "one"), authority(api, "two")
    await settle(api, first)
    await settle(api, first, second)
    api.status = api.status.model_copy(update={"operator": None})
    assert await first.claim(OWNER, api.status) is Claim.TAKE
    assert await first.claim(OWNER, api.status) is Claim.HOLD
    await settle(api, first, second)
    assert await authority(api, "one").claim(OWNER, api.status) is Claim.HOLD


async def test_a_speculator_that_was_created_again_is_a_new_one() -> None:
    api = FakeApi()
    first = authority(api, "one")
    await settle(api, first)
    api.status = SpeculatorStatus(operator=THEIRS)
    again = replace(OWNER, uid="another")
    assert await first.claim(again, api.status) is Claim.TAKE
    first.forget(OWNER.namespace, OWNER.name)
    assert await first.claim(OWNER, SpeculatorStatus(operator=THEIRS)) is Claim.TAKE


async def test_a_claim_that_loses_the_race_is_not_remembered() -> None:
    class Racing(FakeApi):
        def apply(self, obj: Object, *, subresource: str = "") -> Object:
            raise Conflict("changed", 409)

    api = Racing()
    loser = authority(api, "one")
    with pytest.raises(Conflict):
        await loser.claim(OWNER, api.status)
    assert decide(OURS, THEIRS, held_before=bool(loser._held)) is Claim.TAKE
