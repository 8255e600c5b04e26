"""An inference pod of real parts: stock SGLang on the CPU engine, SmolLM2, SeaweedFS.

Speculation is exact in float32, so answers can be compared token by token.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession
from safetensors.torch import load_file, save_file

from aurora_api.v1alpha1.draft import DraftSpec, LookupScope
from aurora_protocol.agent_api import LiveCounters, SwapPhase, SwapRequest
from aurora_protocol.pod_settings import TRAFFIC_SECRET
from aurora_protocol.tag_hash import NO_TAG, tag_key, tag_number
from aurora_runtime.engine.draft_swap import load_in_pause
from aurora_runtime.engine.draft_update import DraftReport
from aurora_runtime.engine.sglang_client import SGLangClient
from aurora_runtime.engine.speculation_settings import LOOKUP_STEPS
from aurora_runtime.errors import EngineFault
from aurora_runtime.serving.capture.shard_writer import HEARTBEAT_SECONDS
from tests.assets.pod_processes import ADMIN_KEY, AGENT_TOKEN, PodProcesses, http_body, http_status
from tests.assets.s3 import S3, seaweedfs
from tests.integration.engine.refused_requests import REFUSED
from tests.integration.engine.serving_world import World, pod_settings, serving_world
from tests.integration.training.captured_traces import (
    STEPS,
    chat_prompt,
    check_states,
    check_trace,
    collect_traces,
    generate,
    load_tokenizer,
    on_each_route,
    prompts_of,
    rendered,
)
from tests.integration.training.lineage import DRAFT_VOCABULARY

pytestmark = pytest.mark.timeout(1800)  # an engine starts in half a minute alone, in many on a crowded machine


@pytest.fixture(scope="module")
def store() -> Iterator[S3]:
    with seaweedfs() as s3:
        yield s3


@pytest.fixture(scope="module")
def world(store: S3, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with serving_world(store, tmp_path_factory.mktemp("serving")) as world:
        yield world


def test_traces_equal_the_served_requests(world: World) -> None:
    prompts, start = prompts_of(world.target), live_counters(world.pod)
    alone = [generate(world.pod.engine_url, prompt) for prompt in prompts]
    again = [
        chat_prompt(world.target, question) for question in ("Name two birds.", "Name two trees.", "Name two towns.")
    ]
    with ThreadPoolExecutor(4) as clients:
        together = list(clients.map(lambda prompt: generate(world.pod.engine_url, prompt), again))
    check_counted(world.pod, start, [*alone, *together])
    asked = list(zip([*prompts, *again], [*alone, *together], strict=True))
    traces = collect_traces(world.registry, {tuple(prompt + answer["output_ids"]) for prompt, answer in asked})
    for prompt, answer in asked:
        check_trace(traces[tuple(prompt + answer["output_ids"])], prompt, answer, world.number(prompt))
    repeated = traces[tuple(prompts[0] + alone[0]["output_ids"])]
    assert int(repeated.accepted.sum()) > 10, "drafts were accepted"
    assert any(answer["meta_info"]["finish_reason"]["type"] == "stop" for _, answer in asked)
    check_states(traces[tuple(prompts[1] + alone[1]["output_ids"])], world.target)
    manifests = [world.registry.shard(key)[0] for key in world.registry.list_shards(1).data_bytes]
    assert sum(manifest.requests for manifest in manifests) == len(asked), "neither the warm-up nor the probe is traced"


def live_counters(pod: PodProcesses) -> LiveCounters:
    """The pod's counters of the requests that have ended by now."""
    time.sleep(3 * HEARTBEAT_SECONDS)
    return pod.state().live


def check_counted(pod: PodProcesses, start: LiveCounters, answers: Sequence[dict[str, Any]]) -> None:
    """Since ``start`` the pod counted the tokens and the verify rounds of ``answers`` as SGLang told the client."""
    ended, sizes = live_counters(pod).since(start), [answer["meta_info"] for answer in answers]
    assert ended.requests == len(answers)
    assert ended.tokens == sum(size["completion_tokens"] - 1 for size in sizes)
    assert ended.rounds == sum(size["spec_verify_ct"] for size in sizes)


@pytest.mark.parametrize(("route", "body", "status"), REFUSED.values(), ids=REFUSED)
def test_a_request_that_would_harm_the_engine_is_refused_and_others_are_answered(
    world: World, route: str, body: dict[str, Any], status: int
) -> None:
    assert http_status(f"{world.pod.engine_url}{route}", body) == status
    assert generate(world.pod.engine_url, prompts_of(world.target)[0], 4)["output_ids"]


def test_a_request_that_refuses_traces_leaves_none_and_a_tag_is_stored_as_its_hash(world: World) -> None:
    url = world.pod.engine_url
    refused, tagged, last = "Name two stars.", "Name two seas.", prompts_of(world.target)[0]
    for question, wish in ((refused, {"trace": False}), (tagged, {"tag": "tenant-7"})):
        for route, body in on_each_route(world.target, question, wish):
            assert http_status(f"{url}{route}", body) == 200, route
    for route, body in on_each_route(world.target, refused, {"trcae": False}):
        assert http_status(f"{url}{route}", body) == 400, route
    asked_last = tuple(last + generate(url, last, 7)["output_ids"])
    decode, traces = load_tokenizer(world.target).decode, collect_traces(world.registry, {asked_last})
    secret = (world.pod.engine_keys / TRAFFIC_SECRET).read_text().strip()
    tags = {text: {t.tag for tokens, t in traces.items() if text in decode(list(tokens))} for text in (refused, tagged)}
    assert tags == {refused: set(), tagged: {tag_number(tag_key(secret), "tenant-7")}}
    assert {trace.tag for trace in traces.values()} == {NO_TAG} | tags[tagged]


def test_all_turns_of_a_conversation_are_on_one_side_of_the_split(world: World) -> None:
    question: dict[str, str] = {"role": "user", "content": "Name two lakes."}
    messages, asked = [question], set()
    for _ in range(3):
        prompt = rendered(world.target, messages)
        asked.add(tuple(prompt + (output := generate(world.pod.engine_url, prompt, 8)["output_ids"])))
        answer = load_tokenizer(world.target).decode(output, skip_special_tokens=True)
        messages += [{"role": "assistant", "content": answer}, question]
    traces = collect_traces(world.registry, asked)
    assert {traces[tokens].request for tokens in asked} == {world.number(rendered(world.target, [question]))}


def test_keys_are_never_shown(world: World) -> None:
    assert ADMIN_KEY not in http_body(f"{world.pod.engine_url}/server_info").decode()
    assert ADMIN_KEY not in world.pod.log.read_text(errors="replace")
    assert http_status(f"{world.pod.engine_url}/pause_generation", body={"mode": "in_place"}) == 401
    assert http_status(f"{world.pod.agent_url}/v1/state") == 401
    assert http_status(f"{world.pod.agent_url}/v1/state", token=ADMIN_KEY) == 401
    assert AGENT_TOKEN not in http_body(f"{world.pod.agent_url}/metrics").decode()


def _stream(url: str, prompt: list[int]) -> list[int]:
    body = {"input_ids": prompt, "stream": True, "sampling_params": {"temperature": 0, "max_new_tokens": 48}}
    last: dict[str, Any] = {}
    for line in http_body(f"{url}/generate", body).decode().splitlines():
        if line.startswith("data: {"):
            last = json.loads(line.removeprefix("data: "))
    ids: list[int] = last["output_ids"]
    assert last["meta_info"]["finish_reason"]["type"] in ("length", "stop")
    return ids


def _stream_at_once(url: str, prompts: list[list[int]]) -> list[list[int]]:
    with ThreadPoolExecutor(len(prompts)) as clients:
        return list(clients.map(lambda prompt: _stream(url, prompt), prompts))


def test_a_swap_under_load_changes_the_draft_and_no_answer(world: World) -> None:
    pod, url = world.pod, world.pod.engine_url
    prompts = [prompt + prompt[-1:] for prompt in prompts_of(world.target)]
    before = [_stream(url, prompt) for prompt in prompts]
    assert reported(world).is_of_start
    old = pod.state()
    assert (old.version, old.engine_ready) == (0, True)
    swap = SwapRequest(version=1, digest=world.versions[1].digest, epoch=2)
    with ThreadPoolExecutor(4) as clients:
        running = [clients.submit(_stream, url, prompt) for prompt in prompts]
        time.sleep(0.5)
        assert pod.request_swap(swap) == 202
        new = pod.wait_until_swap_ends()
        during = [future.result() for future in running]
    assert during == before
    assert _stream_at_once(url, prompts) == before
    assert (new.version, new.swap.phase, new.swap.error) == (1, SwapPhase.IDLE, "")
    assert new.checksum != old.checksum
    assert reported(world).is_of(world.versions[1].digest)
    assert new.swap.pause_seconds is not None
    print(f"swap under load: generation paused for {new.swap.pause_seconds:.3f} s")
    assert pod.folder.current.resolve().name.startswith("00000001-")
    assert pod.request_swap(swap) == 202, "a repeated request changes nothing"
    assert pod.wait_until_swap_ends().checksum == new.checksum
    assert pod.request_swap(SwapRequest(version=0, digest=world.versions[0].digest, epoch=1)) == 409, (
        "an older epoch is refused"
    )
    text = http_body(f"{pod.agent_url}/metrics").decode()
    assert "aurora_agent_draft_version 1.0" in text
    assert 'aurora_agent_swaps_total{result="success"} 1.0' in text


def reported(world: World) -> DraftReport:
    """What the engine reports of its draft."""

    async def ask() -> DraftReport:
        async with ClientSession() as session:
            return await SGLangClient(session, world.pod.engine_url, ADMIN_KEY).draft_report()

    return asyncio.run(ask())


def test_a_swap_back_gives_the_first_checksum_again(world: World) -> None:
    pod = world.pod
    assert pod.request_swap(SwapRequest(version=1, digest=world.versions[1].digest, epoch=2)) == 202
    one = pod.wait_until_swap_ends()
    assert pod.request_swap(SwapRequest(version=0, digest=world.versions[0].digest, epoch=3)) == 202
    zero = pod.wait_until_swap_ends()
    assert (zero.version, zero.swap.phase) == (0, SwapPhase.IDLE)
    assert reported(world).is_of(world.versions[0].digest)
    assert pod.request_swap(SwapRequest(version=1, digest=world.versions[1].digest, epoch=4)) == 202
    assert pod.wait_until_swap_ends().checksum == one.checksum != zero.checksum


def test_a_swap_replaces_the_vocabulary_map_too(world: World) -> None:
    """The two constant drafts propose the same tokens from other rows of their heads."""
    pod, prompt = world.pod, prompts_of(world.target)[0]
    accepted = []
    for epoch, version in enumerate((0, 2, 0), start=5):
        assert pod.request_swap(SwapRequest(version=version, digest=world.versions[version].digest, epoch=epoch)) == 202
        state = pod.wait_until_swap_ends()
        assert (state.version, state.swap.phase, state.swap.error) == (version, SwapPhase.IDLE, "")
        assert reported(world).is_of(world.versions[version].digest)
        answer = generate(pod.engine_url, prompt)
        accepted.append((state.checksum, answer["output_ids"], answer["meta_info"]["spec_num_correct_drafts"]))
    (first, text, drafts), other, again = accepted
    assert drafts > 10
    assert other[1:] == (text, drafts)
    assert other[0] != first, "the checksum sees the map"
    assert again == (first, text, drafts)


def test_a_draft_with_an_impossible_vocabulary_map_never_reaches_the_engine(world: World) -> None:
    pod = world.pod
    before = pod.state()
    assert pod.request_swap(SwapRequest(version=3, digest=world.versions[3].digest, epoch=8)) == 202
    after = pod.wait_until_swap_ends()
    assert after.swap.phase is SwapPhase.FAILED
    assert "d2t does not name" in after.swap.error
    assert (after.version, after.checksum, after.engine_ready) == (before.version, before.checksum, True)


@dataclass(frozen=True)
class File:
    """A file that no lineage knows, as version 99."""

    weights: Path
    version: int = 99
    digest: str = "ab" * 32


@pytest.mark.parametrize("fault", ["gone", "no map"])
def test_a_file_that_cannot_be_loaded_changes_nothing_and_the_engine_says_why(
    world: World, tmp_path: Path, fault: str
) -> None:
    tensors, file = (
        load_file(world.pod.folder.current.resolve() / "model.safetensors"),
        File(tmp_path / "model.safetensors"),
    )
    del tensors["d2t"]
    if fault != "gone":
        save_file(tensors, file.weights)

    async def push() -> tuple[str, DraftReport, DraftReport, int]:
        async with ClientSession() as session:
            engine = SGLangClient(session, world.pod.engine_url, ADMIN_KEY)
            before = await engine.draft_report()
            with pytest.raises(EngineFault) as refused:
                await load_in_pause(engine, file)
            return str(refused.value), before, await engine.draft_report(), await engine.draft_version()

    why, before, after, version = asyncio.run(push())
    assert "the draft was not loaded" in why
    assert ("No such file" if fault == "gone" else "d2t") in why
    assert before == after
    assert version == world.pod.state().version, "SGLang does not take the version of a failed load over"
    assert generate(world.pod.engine_url, [1, 2, 3], 4)["output_ids"]


def test_an_agent_killed_in_a_pause_is_replaced_by_one_that_resumes(world: World) -> None:
    """The agent of `world` keeps its port; the second agent, which the kubelet would start, takes another port."""
    pod = world.pod
    expected = pod.state()
    second = PodProcesses.__new__(PodProcesses)
    second.__dict__ |= pod.__dict__ | {"agent_port": pod.agent_port + 1}
    with second.agent() as agent:
        assert second.state().checksum == expected.checksum
        agent.send_signal(signal.SIGKILL)
    assert pod.probe() == 200, "the engine serves without its agent"

    async def pause_and_begin() -> bool:
        async with ClientSession() as session:
            engine = SGLangClient(session, pod.engine_url, ADMIN_KEY)
            await engine.pause_generation()
            await engine.begin_weight_update()
            return await engine.is_ready()

    assert asyncio.run(pause_and_begin()) is False
    with second.agent():
        state = second.state()
        assert (state.version, state.checksum, state.engine_ready) == (expected.version, expected.checksum, True)
        assert generate(pod.engine_url, [1, 2, 3], 4)["output_ids"]


def test_a_retracted_request_is_traced_completely(world: World) -> None:
    """A retraction puts a running request back into the queue; SGLang prefills it again with its answer so far."""

    async def retract() -> None:
        async with ClientSession() as session:
            engine = SGLangClient(session, world.pod.engine_url, ADMIN_KEY)
            await engine._command("/pause_generation", {"mode": "retract"}, timeout_seconds=60)
            await engine.resume_generation()

    prompt = chat_prompt(world.target, "Tell me a story about a lighthouse.")
    with ThreadPoolExecutor(1) as client:
        running = client.submit(generate, world.pod.engine_url, prompt, 64)
        time.sleep(1.5)
        asyncio.run(retract())
        answer = running.result()
    assert answer["meta_info"]["num_retractions"] == 1
    wanted = tuple(prompt + answer["output_ids"])
    trace = collect_traces(world.registry, {wanted})[wanted]
    check_trace(trace, prompt, answer, world.number(prompt))
    check_states(trace, world.target)


def test_a_pod_that_chooses_each_round_is_traced_and_swaps_under_load(store: S3, world: World, tmp_path: Path) -> None:
    draft = DraftSpec(vocab_size=DRAFT_VOCABULARY, steps=STEPS, lookup=LookupScope.SPECULATOR)
    pod = PodProcesses(tmp_path / "pod", pod_settings(store, world.target, draft), store.environment())
    assert pod.stage().returncode == 0
    with pod.engine() as engine, pod.agent() as agent:
        prompts = [prompt + prompt[-3:] for prompt in prompts_of(world.target)]
        start = live_counters(pod)
        with ThreadPoolExecutor(4) as clients:
            answers = list(clients.map(lambda prompt: generate(pod.engine_url, prompt), prompts))
        check_counted(pod, start, answers)
        texts = [tuple(p + a["output_ids"]) for p, a in zip(prompts, answers, strict=True)]
        found = collect_traces(world.registry, set(texts))
        traces = [found[text] for text in texts]
        for trace, prompt, answer in zip(traces, prompts, answers, strict=True):
            check_trace(trace, prompt, answer, world.number(prompt), most_steps=LOOKUP_STEPS)
        _check_that_lookup_is_traced(pod, world, prompts[0])
        check_states(traces[0], world.target)

        before = _stream_at_once(pod.engine_url, prompts)
        assert before == _stream_at_once(world.pod.engine_url, prompts)
        with ThreadPoolExecutor(4) as clients:
            running = [clients.submit(_stream, pod.engine_url, prompt) for prompt in prompts]
            time.sleep(0.5)
            assert pod.request_swap(SwapRequest(version=1, digest=world.versions[1].digest, epoch=2)) == 202
            new = pod.wait_until_swap_ends()
            assert [future.result() for future in running] == before
        assert (new.version, new.swap.phase, new.swap.error) == (1, SwapPhase.IDLE, "")
        assert _stream_at_once(pod.engine_url, prompts) == before
        _check_the_end_of(pod, engine, agent)


def _check_that_lookup_is_traced(pod: PodProcesses, world: World, repetition: list[int]) -> None:
    """Repeat until a round proposes. How soon a trial is worth its time depends on the machine's times."""
    prompt = list(repetition)
    for _ in range(20):
        prompt += repetition[-1:]
        answer = generate(pod.engine_url, prompt, 128)
        asked = tuple(prompt + answer["output_ids"])
        trace = collect_traces(world.registry, {asked})[asked]
        check_trace(trace, prompt, answer, world.number(prompt), most_steps=LOOKUP_STEPS)
        if max(trace.node_count.tolist()) > 1:
            return
    pytest.fail("no round proposed looked-up tokens")


def _check_the_end_of(pod: PodProcesses, engine: subprocess.Popen[bytes], agent: subprocess.Popen[bytes]) -> None:
    """Ask the launcher to stop, then the agent, as the kubelet does. Both succeed and leave nothing behind."""
    engine.send_signal(signal.SIGTERM)
    assert engine.wait(60) == 0, "a launcher that is asked to stop exits with success"
    assert (pod.probe(), pod.state().engine_ready) == (0, False)
    agent.send_signal(signal.SIGTERM)
    assert agent.wait(60) == 0
    assert list(pod.folder.spool.glob("*.json")) == [], "nothing is left behind while the store answers"


def _schedulers_of(launcher: int) -> list[int]:
    """Scheduler processes of the SGLang that ``launcher`` started."""
    listing = subprocess.run(["ps", "-eo", "pid=,ppid=,comm="], check=True, capture_output=True, text=True).stdout
    rows = [
        (int(pid), int(parent), name) for pid, parent, name in (line.split(None, 2) for line in listing.splitlines())
    ]
    engines = {pid for pid, parent, _ in rows if parent == launcher}
    return [pid for pid, parent, name in rows if parent in engines and name.startswith("sglang::sched")]


def test_the_container_ends_with_an_error_when_the_engine_dies(world: World) -> None:
    """The last test of this module, because it ends the engine of `world`. SGLang's own exit code may be 0 here."""
    (scheduler,) = _schedulers_of(world.engine.pid)
    os.kill(scheduler, signal.SIGKILL)
    assert world.engine.wait(120) != 0
    assert world.pod.probe() == 0
    state = world.pod.state()
    assert (state.boot, state.engine_ready, state.version) == ("", False, None)
