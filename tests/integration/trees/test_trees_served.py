"""Trees of drafts on the CPU engine: no answer changes, and requests are traced as they were verified."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from aurora_api.v1alpha1.draft import DraftSpec
from tests.assets.model import ensure_model
from tests.assets.pod_processes import PodProcesses
from tests.assets.random_draft import write_random_draft
from tests.assets.s3 import seaweedfs
from tests.assets.sglang_server import sglang_server
from tests.integration.engine.plain_answers import FP32, chat_answers, plain_answers
from tests.integration.engine.serving_world import pod_settings, publish_drafts
from tests.integration.training.captured_traces import (
    STEPS,
    check_states,
    check_trace,
    collect_traces,
    conversation_number,
    generate,
    prompts_of,
)
from tests.integration.training.lineage import DRAFT_VOCABULARY

pytestmark = pytest.mark.timeout(1800)


def test_a_tree_of_drafts_gives_the_same_answers(tmp_path: Path) -> None:
    model, plain = ensure_model(), plain_answers()
    draft = write_random_draft(tmp_path / "draft", model)
    tree = ["--speculative-eagle-topk", "2", "--speculative-num-draft-tokens", "6"]
    with sglang_server(model, draft, extra_args=[*FP32, *tree], stop_seconds=0) as server:
        assert chat_answers(server) == plain.chat


def test_requests_with_a_draft_tree_are_traced(tmp_path: Path) -> None:
    draft = DraftSpec(vocab_size=DRAFT_VOCABULARY, steps=STEPS, branching=3, draft_tokens=8)
    with seaweedfs() as store:
        published = publish_drafts(store, tmp_path / "drafts")
        target = published.target
        pod = PodProcesses(tmp_path / "pod", pod_settings(store, target, draft), store.environment())
        assert pod.stage().returncode == 0
        with pod.engine(), pod.agent():
            prompts = prompts_of(target)
            with ThreadPoolExecutor(4) as clients:
                answers = list(clients.map(lambda prompt: generate(pod.engine_url, prompt), prompts))
            texts = [tuple(p + a["output_ids"]) for p, a in zip(prompts, answers, strict=True)]
            traces = collect_traces(published.registry, set(texts))
    for text, prompt, answer in zip(texts, prompts, answers, strict=True):
        check_trace(traces[text], prompt, answer, conversation_number(target, prompt, pod.traffic_key))
        assert set(traces[text].node_count.tolist()) == {8}
    assert int(traces[texts[0]].accepted.sum()) > 5
    check_states(traces[texts[0]], target)
