"""The hooks in a miniature engine: whatever the arms and the schedule, the draft misses nothing and nothing is left."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aurora_api.v1alpha1.draft import LookupScope
from aurora_runtime.engine.arms import OFF, Source
from aurora_runtime.held_out_split import is_held_out, prompt_hash
from aurora_runtime.serving.speculation.outlook import Decision, RequestOutlook
from aurora_runtime.serving.speculation.worker import engine_control
from aurora_runtime.serving.speculation.worker.device_clock import DeviceClock
from aurora_runtime.serving.speculation.worker.engine_control import EngineControl
from aurora_runtime.serving.speculation.worker.hooks import are_held_off, round_observer
from aurora_runtime.serving.speculation.worker.policy import FixedArms
from aurora_runtime.serving.speculation.worker.rank_agreement import RankAgreement
from aurora_runtime.serving.speculation.worker.rounds import RoundObserver
from tests.unit.serving.speculation.worker.controlled_engine import (
    ARMS,
    BUFFER,
    ROWS,
    SETTINGS,
    UNTRAINED,
    ControlledEngine,
    Schedule,
)
from tests.unit.serving.speculation.worker.fake_engine import DRAFT, EXTEND, PROMPT_TOKENS, VERIFY
from tests.unit.serving.speculation.worker.fake_requests import FakeRequest


class Failing(FixedArms):
    """A policy with a bug."""

    def choose(self, outlooks: Sequence[RequestOutlook]) -> Decision:
        raise ZeroDivisionError


def fail(*_: object) -> None:
    raise ZeroDivisionError


@given(
    arms=st.lists(st.sampled_from(ARMS), min_size=1, max_size=8),
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=ROWS),
    schedule=st.sampled_from(Schedule),
    seed=st.integers(0, 99),
    retract_share=st.sampled_from([0.0, 0.1]),
    pages=st.sampled_from([None, 16]),
)
def test_the_draft_misses_nothing_and_requests_leave_nothing(
    arms: list[str], lengths: list[int], schedule: Schedule, seed: int, retract_share: float, pages: int | None
) -> None:
    """The engine itself checks each pass of the draft."""
    controlled = ControlledEngine(arms, schedule, seed=seed, retract_share=retract_share, pages=pages)
    for req in controlled.run(lengths):
        start = PROMPT_TOKENS
        assert req.output_ids == [req.token(start + i) for i in range(len(req.output_ids))]
        assert len(req.output_ids) >= req.max_tokens
    assert len(controlled.control.texts) == 0
    assert controlled.control.progress._requests == {}
    assert len(controlled.buffer._free) * BUFFER.page_tokens == controlled.buffer.slots
    assert controlled.report._seen == {}
    assert controlled.report.errors == 0


@pytest.mark.parametrize("schedule", Schedule)
def test_rounds_are_counted_and_lookup_proposes_from_the_last_committed_token(schedule: Schedule) -> None:
    controlled = ControlledEngine(["lookup-5"], schedule)
    controlled.run([40])
    state = controlled.report.state()
    assert state.lookup.accepted > 15, "the target's text repeats itself"
    assert state.lookup.accepted == state.lookup.proposed, "no proposal came from a text without its last tokens"
    assert controlled.engine.catch_ups == 0


@pytest.mark.parametrize("schedule", Schedule)
def test_requests_that_a_measurement_holds_to_off_are_answered_without_the_draft(schedule: Schedule) -> None:
    controlled = ControlledEngine(["draft-3"], schedule)
    controlled.run([20, 20], speculate=False)
    state = controlled.report.state()
    assert {decision.arm for decision, *_ in controlled.policy.observed} == {OFF}
    assert controlled.policy.decisions == [], "the policy is not asked"
    assert (state.draft.proposed, state.lookup.proposed) == (0, 0)
    assert controlled.engine.catch_ups == 0
    assert controlled.engine.draft_prefills == 0


def test_a_batch_with_a_request_of_a_client_is_not_held_to_off() -> None:
    off, client = FakeRequest("1"), FakeRequest("2")
    off.sampling_params.custom_params = {"aurora": {"speculate": False}}
    assert are_held_off([off])
    assert not are_held_off([off, client])


@pytest.mark.parametrize("schedule", Schedule)
def test_the_draft_does_not_run_for_requests_that_have_ended(schedule: Schedule) -> None:
    controlled = ControlledEngine(["draft-1", *["off"] * 40], schedule)
    controlled.run([8, 8])
    assert controlled.engine.catch_ups == 0


@pytest.mark.parametrize("schedule", Schedule)
def test_tokens_behind_an_answers_end_do_not_count(schedule: Schedule) -> None:
    """Answers stop in the middle of a round. Under overlap scheduling each takes part in one more round."""
    controlled = ControlledEngine(["draft-3"], schedule)
    if schedule is Schedule.WAITS:  # as on a GPU, where each round is told after its results were processed
        clock = controlled.engine.device
        controlled.hooks._observer = RoundObserver(controlled.hooks._learning, clock, rounds_late=1)
    requests = controlled.run([10, 17, 40])
    made: Counter[str] = Counter()
    garbage = 0
    for (_, outlooks, accepted, milliseconds, _), tokens in zip(
        controlled.policy.observed, controlled.policy.made, strict=True
    ):
        for outlook, own, count in zip(outlooks, tokens, accepted, strict=True):
            assert own <= count + 1
            made[outlook.rid] += own
            garbage += own == 0
            assert own or milliseconds is not None, "the time of such a round counts"
    assert made["r0"] == requests[0].max_tokens - 1, "all but the token of the prefill"
    assert made["r1"] == requests[1].max_tokens - 1
    assert garbage == (0 if schedule is Schedule.IN_TURN else 2)


@pytest.mark.parametrize("schedule", Schedule)
def test_a_round_in_whose_time_the_draft_catches_up_between_two_drafting_rounds_is_not_timed(
    schedule: Schedule, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The draft is in use, so a request with a full buffer catches up in a round that is none of the draft's."""
    controlled = ControlledEngine(["draft-1", *["off"] * 40], schedule)
    ran: list[int] = []
    catch_up = controlled.engine.catch_up

    def noted(*args: Any) -> Any:
        ran.append(controlled.engine.rounds)
        return catch_up(*args)

    monkeypatch.setattr(controlled.engine, "catch_up", noted)
    controlled.run([36, 36])
    times = [milliseconds for _, _, _, milliseconds, _ in controlled.policy.observed]
    rounds = [number for number in dict.fromkeys(ran) if number <= len(times)]
    assert rounds, "a buffer was full"
    assert all(times[number - 1] is None for number in rounds)
    assert sum(time is None for time in times) <= len(rounds) + 3, "beside those of prefills and of the last round"


def test_an_error_of_the_policy_costs_proposals_only() -> None:
    controlled = ControlledEngine(["draft-3"], Schedule.IN_TURN)
    controlled.hooks._policy = Failing(["draft-3"])
    [req] = controlled.run([6])
    assert len(req.output_ids) == 6
    assert controlled.report.state().rounds_by_arm == {"off": 5}
    assert controlled.report.errors == 5


@pytest.mark.parametrize("schedule", Schedule)
@pytest.mark.parametrize("broken", ["observe", "request_ended"])
def test_an_error_of_the_policy_while_it_learns_costs_what_it_would_have_learned(
    schedule: Schedule, broken: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    controlled = ControlledEngine(["draft-3", "lookup-2"], schedule)
    monkeypatch.setattr(controlled.policy, broken, fail)
    for req in controlled.run([6, 9]):
        assert len(req.output_ids) >= req.max_tokens
    assert controlled.report.errors > 0
    assert len([record for record in caplog.records if record.exc_info]) == controlled.report.errors
    assert controlled.control.progress._requests == {}


@pytest.mark.parametrize("schedule", Schedule)
def test_an_error_while_a_round_is_counted_costs_the_count(schedule: Schedule, monkeypatch: pytest.MonkeyPatch) -> None:
    controlled = ControlledEngine(["draft-3", "off"], schedule)
    monkeypatch.setattr(controlled.report, "add", fail)
    [req] = controlled.run([9])
    assert len(req.output_ids) >= 9
    assert controlled.report.errors > 0
    assert controlled.policy.observed, "the policy learns all the same"


@pytest.mark.parametrize("schedule", [Schedule.IN_TURN, Schedule.WAITS])
def test_an_error_in_lookup_costs_proposals_and_the_other_ranks_hear_of_it(
    schedule: Schedule, monkeypatch: pytest.MonkeyPatch
) -> None:
    controlled = ControlledEngine(["lookup-5"], schedule)
    ranks: RankAgreement = controlled.control.ranks
    agree, told = ranks.agree, list[bool]()

    def agreed(decision: Decision | None, requests: int, *, lookup_failed: bool) -> Decision:
        told.append(lookup_failed)
        return agree(decision, requests)

    monkeypatch.setattr(ranks, "agree", agreed)
    controlled.run([9])
    assert not any(told)
    told.clear()
    rounds = controlled.engine.rounds
    monkeypatch.setattr(controlled.control.texts, "proposals", fail)
    [req] = controlled.run([9])
    assert len(req.output_ids) == 9
    assert controlled.report.errors == controlled.engine.rounds - rounds == len(told)
    assert all(told)


def test_a_device_that_works_off_a_queue_charges_each_round_with_its_own_passes() -> None:
    """SGLang publishes the lengths before the draft's pass over the round's tokens, and before that over the prompt."""
    controlled = ControlledEngine(["draft-1", "off"], Schedule.WAITS)
    device = controlled.engine.device
    controlled.hooks._observer = RoundObserver(controlled.hooks._learning, device, rounds_late=1)
    controlled.run([30, 30])
    times: dict[str, set[float | None]] = {"draft-1": set(), "off": set()}
    for decision, _, _, milliseconds, _ in controlled.policy.observed:
        times[decision.arm.name].add(milliseconds)
    assert times == {"draft-1": {DRAFT + VERIFY + EXTEND}, "off": {VERIFY}}
    assert device.waits == 0


def test_the_policy_hears_of_the_former_drafts_rounds_before_the_next_draft_serves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    controlled = ControlledEngine(["draft-3"], Schedule.WAITS)
    policy, device = controlled.policy, controlled.engine.device
    controlled.hooks._observer = RoundObserver(controlled.hooks._learning, device, rounds_late=1)
    served: list[tuple[str, int]] = []
    choose = policy.choose

    def swap(outlooks: Sequence[RequestOutlook]) -> Decision:
        if len(policy.decisions) == 4:
            controlled.version = "2"  # read before the next decision
        return choose(outlooks)

    monkeypatch.setattr(policy, "choose", swap)
    monkeypatch.setattr(policy, "draft_serves", lambda version: served.append((version, len(policy.observed))))
    controlled.run([40])
    assert served == [("1", 0), ("2", 5)]
    assert device.waits == 1, "for the end of the former draft's last round"


@given(
    arms=st.lists(st.sampled_from(ARMS), min_size=1, max_size=8),
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=ROWS),
    schedule=st.sampled_from(Schedule),
    seed=st.integers(0, 99),
    rounds_until_swap=st.sampled_from([0, 1, 3, 10, 1000]),
)
def test_an_untrained_draft_is_not_run_and_requests_that_it_did_not_process_go_without_a_draft(
    arms: list[str], lengths: list[int], schedule: Schedule, seed: int, rounds_until_swap: int
) -> None:
    """The engine itself checks that no draft starts from a prompt that it has not processed."""
    controlled = ControlledEngine(arms, schedule, seed=seed, retract_share=0.1)
    controlled.version, policy, choose = UNTRAINED, controlled.policy, controlled.policy.choose
    prefills_before = list[int]()

    def swap(outlooks: Sequence[RequestOutlook]) -> Decision:
        if len(policy.decisions) == rounds_until_swap:
            prefills_before.append(controlled.engine.draft_prefills)
            controlled.version = "1"
        return choose(outlooks)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(policy, "choose", swap)
        controlled.run(lengths)
    assert prefills_before in ([0], []), "no prompt was processed before the swap"
    if not prefills_before:
        assert controlled.engine.draft_prefills == 0
        assert all(Source.DRAFT not in decision.sources for decision in policy.decisions)
    assert controlled.control.progress._requests == {}
    assert len(controlled.buffer._free) * BUFFER.page_tokens == controlled.buffer.slots
    assert controlled.report.errors == 0


@pytest.mark.parametrize("schedule", Schedule)
def test_after_a_roll_back_to_the_untrained_draft_no_round_drafts(schedule: Schedule) -> None:
    controlled = ControlledEngine(["draft-3"], schedule)
    policy, choose = controlled.policy, controlled.policy.choose

    def roll_back(outlooks: Sequence[RequestOutlook]) -> Decision:
        if len(policy.decisions) == 4:
            controlled.version = UNTRAINED  # read before the next decision
        return choose(outlooks)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(policy, "choose", roll_back)
        controlled.run([40, 40])
    drafted = [Source.DRAFT in decision.sources for decision in policy.decisions]
    assert drafted == [True] * 5 + [False] * (len(drafted) - 5)
    assert len(drafted) > 10


@pytest.mark.parametrize("version", [UNTRAINED, "1"])
@pytest.mark.parametrize("of_rank_0", [b"", b"1"])
def test_rank_0_says_whether_the_draft_processes_a_prompt(
    version: str, of_rank_0: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A load may fail on one rank only. A rank alone in the draft's pass would wait for the others for ever."""
    controlled = ControlledEngine(["off"], Schedule.IN_TURN)
    controlled.version = version
    monkeypatch.setattr(controlled.control.ranks, "share", lambda _: of_rank_0)
    controlled.run([3])
    assert controlled.engine.draft_prefills == len(of_rank_0)


@pytest.mark.parametrize(("device", "overlaps", "late"), [("cuda", True, 1), ("cuda", False, 0), ("cpu", True, 0)])
def test_the_device_times_rounds_where_it_works_off_a_queue(device: str, overlaps: bool, late: int) -> None:
    observer = round_observer(FixedArms(["off"]), device, overlaps)
    assert (observer._rounds_late, isinstance(observer._clock, DeviceClock)) == (late, late == 1)


def test_without_control_every_round_is_sglangs_own() -> None:
    controlled = ControlledEngine(["draft-3"], Schedule.IN_TURN)
    worker_hooks = controlled.hooks
    worker_hooks._control = None
    calls: list[str] = []
    worker_hooks.around_forward(lambda *_: calls.append("forward"), None, None)
    worker_hooks.around_activate(lambda *_: calls.append("activate"), None, 1)
    worker_hooks.around_verify_complete(lambda *_, **__: calls.append("complete"), None, [1])
    worker_hooks.around_draft(lambda *_, **__: calls.append("draft"), None, None)
    worker_hooks.around_verify(lambda *_: calls.append("verify"), None, None)
    prefill = SimpleNamespace(forward_mode=SimpleNamespace(is_idle=lambda: False))
    worker_hooks.around_prefill_extend(lambda *_: calls.append("prefill"), None, prefill, None, None)
    worker_hooks.around_extend(lambda *_: calls.append("extend"), None, None, None)
    worker_hooks.around_release(lambda *_, **__: calls.append("release"), None, None, checkpoint=True)
    assert worker_hooks.around_cpu_lengths(lambda _: False, ()) is False
    assert calls == ["forward", "activate", "complete", "draft", "verify", "prefill", "extend", "release"]


@pytest.mark.parametrize("key", [b"", b"the key of the traces"])
def test_lookup_shares_no_request_that_is_held_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: bytes) -> None:
    monkeypatch.setattr(RankAgreement, "of_engine", lambda: RankAgreement(None, 0, decides=True))
    monkeypatch.setattr(engine_control, "pending_buffer", lambda *_: None)
    monkeypatch.setattr(engine_control, "is_overlapping", lambda: False)
    model = SimpleNamespace(vocab_size=5000)
    worker = SimpleNamespace(draft_worker=None, target_worker=SimpleNamespace(model_config=model))
    changes = {"state_folder": str(tmp_path), "lookup": LookupScope.SPECULATOR, "traffic_key": key.hex()}
    settings = SETTINGS.model_copy(update=changes)
    index = EngineControl(worker, settings).texts.index
    held_out = next(prompt for first in range(100, 999) if is_held_out(prompt_hash(prompt := [first, first + 1], key)))
    index.begin("b", [*held_out])
    index.extend("b", [4000])
    index.begin("c", [*held_out])
    assert index.propose("c", 1).tokens == ()
