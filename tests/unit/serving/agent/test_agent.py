"""The agent's HTTP API, its metrics and its view of the engine."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import time

import pytest

from aurora_protocol.agent_api import AgentState, LiveCounters, MeasurementRequest, Refusal, SavedTime, TraceBudget
from aurora_runtime.serving.pod_files import (
    CaptureState,
    SourceCounters,
    SpeculationState,
    write_atomically,
)
from tests.unit.fakes import KEY
from tests.unit.serving.agent.rigs import AUTH, JOB, TOKEN, BusyDisk, PodRig
from tests.unit.serving.agent.test_uploader import shard


async def test_only_metrics_need_no_token(rig: PodRig) -> None:
    assert (await rig.http.get("/metrics")).status == 200
    swap = rig.swap_request(1, 2).to_json()
    for headers in (
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": TOKEN},
        {"Authorization": f"Bearer {KEY}"},
    ):
        assert (await rig.http.get("/v1/state", headers=headers)).status == 401
        assert (await rig.http.put("/v1/draft", data=swap, headers=headers)).status == 401
    assert rig.serves(0)
    assert rig.engine.calls.count("pause_generation") == 0


async def test_an_engine_that_is_held_says_so_until_it_holds_another_draft(rig: PodRig) -> None:
    rig.report_engine(ready=True, held_version=0)
    assert (await rig.state()).speculation_off == "the engine crashed twice within ten minutes with this draft"
    await rig.http.put("/v1/draft", data=rig.swap_request(1, 2).to_json(), headers=AUTH)
    await rig.swapper.wait()
    assert (await rig.state()).speculation_off == ""


async def test_a_swap_is_requested_and_reported_over_http(rig: PodRig) -> None:
    answer = await rig.http.put("/v1/draft", data=rig.swap_request(1, 2).to_json(), headers=AUTH)
    assert answer.status == 202
    await rig.swapper.wait()
    state = await rig.state()
    assert (state.version, state.pod, state.boot, state.engine_ready) == (1, "pod-0", "b1", True)
    assert state.checksum == await rig.client.draft_checksum()
    assert state.requests_now == 4, "three run, and one waits"
    refused = await rig.http.put("/v1/draft", data=rig.swap_request(0, 1).to_json(), headers=AUTH)
    assert refused.status == 409
    refusal = Refusal.from_json(await refused.read())
    assert refusal.epoch == 2
    assert "older" in refusal.reason
    assert (await rig.http.put("/v1/draft", data=b'{"version": 1}', headers=AUTH)).status == 400
    text = await rig.metrics_text()
    assert "aurora_agent_draft_version 1.0" in text
    assert 'aurora_agent_swaps_total{result="success"} 1.0' in text
    assert "aurora_agent_swap_pause_seconds_count 1.0" in text
    assert KEY not in text
    assert TOKEN not in text


async def test_a_trace_budget_is_kept_for_the_engine(rig: PodRig) -> None:
    assert (await rig.state()).trace_budget == TraceBudget(tokens_per_minute=0)
    budget = TraceBudget(tokens_per_minute=700)
    answer = await rig.http.put("/v1/trace-budget", data=budget.to_json(), headers=AUTH)
    assert answer.status == 202
    assert AgentState.from_json(await answer.read()).trace_budget == budget
    assert rig.folder.read_trace_budget() == budget
    rig.folder.trace_budget.write_text("{")
    assert (await rig.state()).trace_budget == TraceBudget(tokens_per_minute=0), "the operator orders again"
    assert (await rig.http.put("/v1/trace-budget", data=b'{"tokensPerMinute": -1}', headers=AUTH)).status == 400
    assert (await rig.http.put("/v1/trace-budget", data=budget.to_json())).status == 401


async def test_swaps_and_losses_are_counted_from_zero(rig: PodRig) -> None:
    """PromQL's ``increase`` does not see the value with which a series begins."""
    text = await rig.metrics_text()
    for series in ('swaps_total{result="success"}', 'swaps_total{result="failure"}', 'losses_total{reason="spool"}'):
        assert f"aurora_agent_{series} 0.0" in text


async def test_the_pod_is_ready_only_when_the_launcher_says_so(rig: PodRig) -> None:
    rig.folder.engine.unlink()
    assert not (await rig.state()).engine_ready
    rig.report_engine(ready=False)
    assert not (await rig.state()).engine_ready
    assert (await rig.http.put("/v1/draft", data=rig.swap_request(1, 2).to_json(), headers=AUTH)).status == 503
    rig.report_engine(ready=True)
    assert (await rig.state()).engine_ready
    rig.engine.paused = True
    assert not (await rig.state()).engine_ready, "a pause that is not ours"
    rig.swapper.draft_swap.paused = True
    assert (await rig.state()).engine_ready, "our own pause is short"


async def test_a_pause_that_a_dead_agent_left_ends_without_a_probe_or_an_operator(rig: PodRig) -> None:
    rig.engine.paused = True
    rig.start_agent()
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(rig.pod.run(), 0.5)
    assert not rig.engine.paused


async def test_a_new_start_of_the_engine_is_recovered(rig: PodRig) -> None:
    first = await rig.state()
    rig.engine.weights = b"another engine"
    rig.engine.paused = True
    rig.report_engine(ready=True, boot="b2")
    second = await rig.state()
    assert second.boot == "b2"
    assert second.checksum != first.checksum, "a checksum is not remembered across engines"
    assert not rig.engine.paused


async def test_the_engine_computes_its_checksum_once(rig: PodRig) -> None:
    rig.report_engine("b2")
    for _ in range(5):
        await rig.state()
    assert rig.engine.calls.count("weights_checker") == 1


async def test_an_engine_that_does_not_answer_is_not_ready(rig: PodRig) -> None:
    await rig.state()
    rig.engine.version = "default"
    state = await rig.state()
    assert (state.version, state.engine_ready) == (None, False)


async def test_capture_counters_come_from_the_plugin(rig: PodRig) -> None:
    counters = CaptureState(
        boot="b1",
        ok=True,
        captured_records=9,
        dropped_records=2,
        losses={"queue": 2},
        hook_errors=1,
        traced_answer_tokens=7,
        shards_dropped=4,
    )
    write_atomically(rig.folder.capture, counters.to_json())
    capture = (await rig.state()).capture
    assert (capture.captured_records, capture.dropped_records) == (9, 3)
    rig.uploader.counters.losses["damaged"] += 1
    text = await rig.metrics_text()
    for reason, count in (("queue", 2), ("damaged", 1)):
        assert f'aurora_agent_losses_total{{reason="{reason}"}} {count}.0' in text
    assert "aurora_agent_dropped_shards_total 5.0" in text
    assert (capture.answer_tokens, capture.shards_dropped) == (7, 4)


def report(boot: str = "b1", **fields: object) -> SpeculationState:
    values = {
        "boot": boot,
        "rounds_by_arm": {"off": 90, "draft-3": 10},
        "lookup": SourceCounters(proposed_at=(40, 30), accepted_at=(20, 10)),
        "draft": SourceCounters(proposed_at=(10, 10, 10), accepted_at=(7, 5, 2)),
        "speedup_over_off": 1.4,
        "saved_time": SavedTime(share=0.2, observed_seconds=60),
    }
    return SpeculationState.model_validate(values | fields)


@pytest.mark.parametrize(("boot", "requests"), [("b1", 3), ("b0", 0)])
async def test_ended_requests_are_those_of_this_engine_start(rig: PodRig, boot: str, requests: int) -> None:
    live = LiveCounters(requests=3, tokens=30, rounds=15, tokens_squared=350, tokens_by_rounds=170, rounds_squared=80)
    state = CaptureState(boot=boot, ok=True, live=live)
    write_atomically(rig.folder.capture, state.to_json())
    assert (await rig.state()).live == (live if requests else LiveCounters())
    assert f"aurora_agent_requests_total {requests}.0" in await rig.metrics_text()


@pytest.mark.parametrize(
    "file",
    [
        pytest.param(report(boot="b0").to_json(), id="of another engine start"),
        pytest.param(report(ok=False, error="another SGLang").to_json(), id="of a controller that was refused"),
        pytest.param(b"{", id="damaged"),
    ],
)
async def test_without_a_controller_nothing_is_estimated(rig: PodRig, file: bytes) -> None:
    plain = await rig.state()
    assert (plain.speedup_estimate, plain.saved_time) == (None, None)
    write_atomically(rig.folder.speculation, file)
    assert await rig.state() == plain
    assert "aurora_agent_decode_rounds" not in await rig.metrics_text()


async def test_estimates_rounds_by_arm_and_tokens_by_source_are_shown(rig: PodRig) -> None:
    write_atomically(rig.folder.speculation, report().to_json())
    state = await rig.state()
    assert (state.speedup_estimate, state.saved_time) == (1.4, SavedTime(share=0.2, observed_seconds=60))
    text = await rig.metrics_text()
    for line in (
        'aurora_agent_decode_rounds_total{arm="off"} 90.0',
        'aurora_agent_decode_rounds_total{arm="draft-3"} 10.0',
        "aurora_agent_estimated_speedup 1.4",
        'aurora_agent_proposed_tokens_total{position="3",source="draft"} 10.0',
        'aurora_agent_accepted_tokens_total{position="3",source="draft"} 2.0',
        'aurora_agent_accepted_tokens_total{position="1",source="lookup"} 20.0',
    ):
        assert line in text.splitlines()


async def test_counters_of_the_engine_are_absent_while_it_serves_nobody(rig: PodRig) -> None:
    assert "aurora_agent_answer_tokens_total" in await rig.metrics_text()
    rig.report_engine(ready=False)
    text = await rig.metrics_text()
    assert "aurora_agent_engine_ready 0.0" in text
    assert "aurora_agent_answer_tokens_total" not in text, "0 would look like a restart, and then like new traffic"


async def test_the_metrics_show_what_waits_in_the_spool_and_what_left_it(rig: PodRig) -> None:
    for seq, age in ((0, 90), (1, 30)):
        written = shard(rig.folder.spool, seq).with_suffix(".json")
        os.utime(written, (time.time() - age, time.time() - age))
    text = await rig.metrics_text()
    assert "aurora_agent_spool_bytes 8.0" in text
    (oldest,) = re.findall(r"^aurora_agent_spool_oldest_shard_seconds (\S+)", text, re.MULTILINE)
    assert 90 <= float(oldest) < 120
    (free,) = re.findall(r"^aurora_agent_spool_free_bytes (\S+)", text, re.MULTILINE)
    assert float(free) > 0
    rig.uploader.upload_spool()
    text = await rig.metrics_text()
    assert "aurora_agent_spool_oldest_shard_seconds 0.0" in text
    assert "aurora_agent_uploaded_bytes_total 8.0" in text


async def test_a_token_that_the_kubelet_replaced_is_accepted_without_a_restart(rig: PodRig) -> None:
    """The operator makes its Secret anew after somebody deleted it. An agent with the former token obeys nobody."""
    status = [await _status(rig, TOKEN)]
    rig.mounted_token = "the-next-token"  # noqa: S105 - a test's
    status += [await _status(rig, token) for token in (rig.mounted_token, TOKEN)]
    assert status == [200, 200, 401], "the former token ends"
    rig.mounted_token = ""
    assert await _status(rig, "") == 401, "an empty file allows nobody"


async def _status(rig: PodRig, token: str) -> int:
    return (await rig.http.get("/v1/state", headers={"Authorization": f"Bearer {token}"})).status


@pytest.mark.parametrize("order", ["draft", "measurement"])
async def test_questions_are_answered_while_an_order_is_written_to_a_busy_disk(
    rig: PodRig, monkeypatch: pytest.MonkeyPatch, order: str
) -> None:
    """Nothing follows from the order before it is on the disk."""
    assert (await rig.state()).engine_ready
    disk = BusyDisk(monkeypatch)
    body = {
        "draft": rig.swap_request(1, 2),
        "measurement": MeasurementRequest(measurement=JOB, epoch=2, lease_seconds=60, begin=True),
    }[order].to_json()
    answer = asyncio.create_task(rig.http.put(f"/v1/{order}", data=body, headers=AUTH))
    await disk.wait_until_begun()
    for path in ("/v1/state", "/metrics"):
        assert (await rig.http.get(path, headers=AUTH)).status == 200
    assert (rig.swapper.last_request(), rig.swapper.is_swapping, rig.lease.withdrawn) == (None, False, False)
    disk.released.set()
    assert (await answer).status == 202
    assert rig.lease.withdrawn is (order == "measurement")
    await rig.swapper.wait()
    assert rig.serves(1 if order == "draft" else 0)
