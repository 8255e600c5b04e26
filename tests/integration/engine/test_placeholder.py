"""A pod of real parts that starts before there is any draft: stock SGLang on the CPU engine, SmolLM2, SeaweedFS."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from aurora_api.v1alpha1.draft import DraftSpec, LookupScope
from aurora_protocol.agent_api import SwapPhase, SwapRequest
from aurora_store import ObjectStore
from tests.assets.model import ensure_model
from tests.assets.pod_processes import PodProcesses, http_body
from tests.assets.s3 import S3, seaweedfs
from tests.integration.engine.serving_world import pod_settings, publish_drafts
from tests.integration.training.captured_traces import STEPS, check_states, collect_traces, generate, prompts_of
from tests.integration.training.lineage import DRAFT_VOCABULARY

pytestmark = pytest.mark.timeout(1800)
SECONDS_UNTIL_TRIED = 120.0
"""The controller explores a draft now and then, so a few requests pass before the draft proposes."""


@pytest.fixture(scope="module")
def store() -> Iterator[S3]:
    with seaweedfs() as s3:
        yield s3


def test_a_pod_without_a_draft_serves_and_takes_a_version_with_another_vocabulary_map(
    store: S3, tmp_path: Path
) -> None:
    ObjectStore(store.config()).ensure_bucket()
    target, draft = ensure_model(), DraftSpec(vocab_size=DRAFT_VOCABULARY, steps=STEPS, lookup=LookupScope.OFF)
    pod = PodProcesses(tmp_path / "pod", pod_settings(store, target, draft), store.environment())
    staged = pod.stage()
    assert staged.returncode == 0, staged.stderr.decode()
    assert b"without a draft" in staged.stderr
    assert not pod.folder.current.exists()
    with pod.engine(), pod.agent():
        prompts = prompts_of(target)
        with ThreadPoolExecutor(4) as clients:
            before = list(clients.map(lambda prompt: generate(pod.engine_url, prompt), prompts))
        bare = pod.state()
        assert (bare.engine_ready, bare.version, bare.checksum) == (True, None, None)
        assert drafted_tokens(pod) == (0, 0), "the placeholder is never run"
        assert "aurora_agent_draft_version" not in http_body(f"{pod.agent_url}/metrics").decode()

        published = publish_drafts(store, tmp_path)
        swap = SwapRequest(version=2, digest=published.versions[2].digest, epoch=1)
        assert pod.request_swap(swap) == 202
        new = pod.wait_until_swap_ends()
        assert (new.version, new.swap.phase, new.swap.error) == (2, SwapPhase.IDLE, "")
        deadline = time.monotonic() + SECONDS_UNTIL_TRIED
        accepted = 0
        while accepted == 0 and time.monotonic() < deadline:
            answers = [generate(pod.engine_url, prompt) for prompt in prompts]
            assert [answer["output_ids"] for answer in answers] == [answer["output_ids"] for answer in before]
            _, accepted = drafted_tokens(pod)
        assert accepted > 0, "the draft proposes through its own map"
        text = tuple(prompts[1] + before[1]["output_ids"])
        check_states(collect_traces(published.registry, {text})[text], target)
    assert pod.folder.current.resolve().name.startswith("00000002-")


def drafted_tokens(pod: PodProcesses) -> tuple[int, int]:
    """Tokens that the draft proposed, and how many of them were accepted."""
    state = pod.folder.read_speculation_state()
    return (sum(state.draft.proposed_at), sum(state.draft.accepted_at)) if state is not None else (0, 0)
