"""The order of actions makes an interruption harmless, and a fault in the middle leaves the rest undone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from aurora_api.v1alpha1.status import CandidatePhase
from aurora_operator.errors import Conflict, KubernetesError, NotLeading
from aurora_operator.observe.observed import RefusedJob
from aurora_operator.plan import Plan
from aurora_protocol.errors import AgentError, Fenced
from aurora_store.errors import ObjectExists
from tests.unit.operator.act.journal import FULL, FakeObserver, Journal, act, new_actor, reconciler_of, swap


async def test_the_order_is_children_channel_status_jobs_swaps_leases_events() -> None:
    journal = Journal()
    journal.store({"kind": "Job", "metadata": {"name": "old"}})
    outcome = await act(journal, FULL)
    assert journal.calls == [
        "create Secret",
        "create Service",
        "create Deployment",
        "keys made",
        "channel",
        "status",
        "delete Job old u",
        "create Job",
        "swap a",
        "swap b",
        "return c",
        "withdraw d",
        "create Event",
    ]
    assert (outcome.fencing_epoch, outcome.apply_errors, outcome.wrote_status) == (0, (), True)


@pytest.mark.parametrize(
    ("where", "error"),
    [
        ("channel", ObjectExists("epoch taken")),
        ("status", Conflict("moved on", 409)),
        ("status", KubernetesError("down")),
    ],
)
async def test_an_operator_that_loses_a_race_asks_no_agent(where: str, error: Exception) -> None:
    journal = Journal(faults={where: error})
    with pytest.raises(type(error)):
        await act(journal, FULL)
    assert journal.calls[-1] == where


async def test_a_process_that_stopped_leading_advances_no_channel_and_asks_no_agent() -> None:
    journal = Journal(faults={"not leading": NotLeading("no Lease")})
    with pytest.raises(NotLeading):
        await act(journal, FULL)
    assert "channel" not in journal.calls
    journal.calls.clear()
    with pytest.raises(NotLeading):
        await act(journal, replace(FULL, advance=None))
    assert [call for call in journal.calls if call.startswith(("swap", "return", "withdraw"))] == []


async def test_a_job_that_is_gone_or_whose_name_another_job_has_is_not_deleted() -> None:
    journal = Journal()
    await act(journal, FULL)
    assert [call for call in journal.calls if call.startswith("delete")] == [], "the Job was not observed"
    journal = Journal(faults={"delete Job old u": Conflict("another uid", 409)})
    journal.store({"kind": "Job", "metadata": {"name": "old"}})
    await act(journal, FULL)
    assert "swap b" in journal.calls, "the name belongs to another Job by now"


async def test_a_refused_child_does_not_delay_the_other_actions() -> None:
    faults: dict[str, Exception] = {
        "create Service": KubernetesError("bad port", 422),
        "create Deployment": KubernetesError("bad pod", 422),
    }
    journal = Journal(faults=faults)
    outcome = await act(journal, FULL)
    assert outcome.apply_errors == ("Service chat: bad port", "Deployment chat-trainer: bad pod")
    assert "swap b" in journal.calls


@pytest.mark.parametrize("fault", [KubernetesError("denied", 403), None])
async def test_keys_that_were_refused_are_not_looked_for_at_once(fault: KubernetesError | None) -> None:
    """Each reconcile would read the missing Secret, and ask for the next one within two seconds."""
    journal = Journal(faults={} if fault is None else {"create Secret": fault})
    await act(journal, Plan(create_keys=True))
    assert ("keys made" in journal.calls) is (fault is None)


async def test_a_refused_job_is_reported_to_the_next_observation_and_delays_nothing() -> None:
    refused = await act(Journal(faults={"create Job": KubernetesError("exceeded quota: jobs", 403)}), FULL)
    assert refused.refused_job == RefusedJob("j", "exceeded quota: jobs")
    assert refused.apply_errors == (), "a refused Job does not affect serving"
    verbose = await act(Journal(faults={"create Job": KubernetesError("no! " * 20_000, 400)}), FULL)
    assert verbose.refused_job is not None
    assert len(verbose.refused_job.message) == 300
    journal = Journal(faults={"create Job": KubernetesError("away", 503)})
    outcome = await act(journal, FULL)
    assert outcome.refused_job is None, "the API server did not decide about the Job"
    assert outcome.apply_errors == (), "the next reconcile tries again"
    assert "swap b" in journal.calls


@pytest.mark.parametrize(
    ("error", "reported"),
    [(KubernetesError("denied", 403), ("Job old: denied",)), (KubernetesError("slow down", 429), ())],
    ids=["refused", "unavailable"],
)
async def test_a_refused_deletion_of_a_job_is_reported_and_delays_only_the_next_measurement(
    error: KubernetesError, reported: tuple[str, ...]
) -> None:
    """One Job exists at a time. An API server that is unavailable makes no speculator Degraded."""
    journal = Journal(faults={"delete Job old u": error})
    for name in ("old", "older"):
        journal.store({"kind": "Job", "metadata": {"name": name}})
    outcome = await act(journal, replace(FULL, delete_jobs=("old", "older")))
    assert outcome.apply_errors == reported
    assert journal.calls[journal.calls.index("delete Job old u") + 1 :] == [
        "delete Job older u",
        "swap a",
        "swap b",
        "return c",
        "create Event",
    ]


async def test_a_job_whose_name_is_taken_by_an_object_that_cannot_be_read_delays_nothing() -> None:
    faults: dict[str, Exception] = {"create Job": Conflict("exists", 409), "get Job j": KubernetesError("denied", 403)}
    journal = Journal(faults=faults)
    outcome = await act(journal, FULL)
    assert outcome.apply_errors == ("Job j: denied",)
    assert "swap b" in journal.calls


async def test_a_refused_job_is_reported_in_the_status_and_not_created_again() -> None:
    journal = Journal(faults={"create Job": KubernetesError("exceeded quota: jobs", 403)})
    reconciler = reconciler_of(journal, FakeObserver(journal))
    for _ in range(4):
        await reconciler.reconcile()
    assert journal.calls.count("create Job") == 1
    candidate = (await FakeObserver(journal).observe()).observed.status.candidate
    assert candidate is not None
    assert candidate.phase is CandidatePhase.FAILED
    assert "exceeded quota: jobs" in candidate.message


async def test_an_unavailable_api_server_ends_the_reconcile() -> None:
    journal = Journal(faults={"create Service": KubernetesError("away", 0)})
    with pytest.raises(KubernetesError):
        await act(journal, FULL)
    assert "status" not in journal.calls


async def test_a_silent_agent_does_not_delay_the_others_and_a_fence_is_reported() -> None:
    silent = await act(Journal(faults={"swap a": AgentError("no answer")}), FULL)
    assert silent.fencing_epoch == 0
    journal = Journal(faults={"swap a": Fenced("higher epoch", epoch=41)})
    assert (await act(journal, FULL)).fencing_epoch == 41
    assert "swap b" in journal.calls
    journal = Journal(faults={"return c": Fenced("higher epoch", epoch=41)})
    assert (await act(journal, FULL)).fencing_epoch == 41
    assert "withdraw d" in journal.calls


@pytest.mark.parametrize("epoch", [None, 1, swap("a").request.epoch])
async def test_a_refusal_without_a_higher_epoch_is_no_fence(epoch: int | None) -> None:
    """The agent is busy, and its last accepted order, if any, was not a newer one."""
    busy = Journal(faults={"swap a": Fenced("a swap is running", epoch=epoch)})
    assert (await act(busy, FULL)).fencing_epoch == 0


async def test_an_unchanged_child_costs_no_call_and_a_change_by_others_is_reverted() -> None:
    journal = Journal()
    actor = new_actor(journal)
    quiet = replace(
        FULL, create_keys=False, advance=None, status=None, job=None, delete_jobs=(), swaps=(), leases=(), notes=()
    )
    await act(journal, quiet, actor)
    journal.calls.clear()
    await act(journal, quiet, actor)
    assert journal.calls == []
    journal.objects["Service", "chat"]["metadata"]["resourceVersion"] = "2"
    await act(journal, quiet, actor)
    assert journal.calls == ["apply Service"]
    journal.calls.clear()
    del journal.objects["Deployment", "chat-trainer"]
    await act(journal, quiet, actor)
    assert journal.calls == ["create Deployment"]
