"""The CPU engine on real servers: answers do not depend on speculation, and a swap of the draft takes effect.

The servers compute in fp32, so that answers can be compared for equality. In bf16, near ties may fall either way.
"""

from __future__ import annotations

import asyncio
import base64
import json
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from aurora_runtime.engine.draft_swap import DraftSwap
from aurora_runtime.engine.path_payload import LOADER
from aurora_runtime.engine.sglang_client import SGLangClient, open_session
from aurora_runtime.engine.speculation_flags import Ngram
from aurora_runtime.errors import EngineFault
from aurora_runtime.validation.draft_fetch import FetchedDraft
from tests.assets.model import ensure_model
from tests.assets.random_draft import REPEATING_TEXT, write_random_draft, write_repeating_draft
from tests.assets.sglang_server import Server, sglang_server

FP32 = ["--dtype", "float32"]
PROMPTS = (
    "What is the capital of France?",
    "Write one sentence on rivers.",
    "Give JSON with name and city for: Anna lives in Rome.",
    "Count from one to ten.",
)
pytestmark = pytest.mark.timeout(1500)


def answer(server: Server, prompt: str, tokens: int = 48) -> tuple[str, dict[str, Any]]:
    body = {
        "model": "default",
        "messages": [{"role": "user", "content": prompt}],
        "temperature": 0,
        "max_tokens": tokens,
        "return_meta_info": True,
    }
    choice = server.post("/v1/chat/completions", body)["choices"][0]
    return choice["message"]["content"], choice["meta_info"]


def answers(server: Server) -> list[str]:
    """The answers to all prompts. They are asked one by one and then at once, because batching must not change them."""
    alone = [answer(server, prompt)[0] for prompt in PROMPTS]
    with ThreadPoolExecutor(4) as pool:
        together = [text for text, _ in pool.map(lambda prompt: answer(server, prompt), PROMPTS)]
    assert together == alone
    return alone


@pytest.fixture(scope="module")
def model() -> Path:
    return ensure_model()


@pytest.fixture(scope="module")
def answers_without_speculation(model: Path) -> list[str]:
    with sglang_server(model, extra_args=FP32) as server:
        return answers(server)


def draft_checksums(server: Server) -> Any:
    return server.post("/weights_checker", {"action": "checksum", "selector": "draft"})["ranks"]


def swap(server: Server, draft: Path, version: str) -> None:
    """Swap the draft's weights with SGLang's five calls. SGLang reads the plain pickle with a restricted unpickler."""
    from safetensors.torch import load_file

    tensors = [(name, t) for name, t in load_file(draft / "model.safetensors").items() if name not in ("d2t", "t2d")]
    payload = base64.b64encode(pickle.dumps(tensors)).decode()
    server.post("/pause_generation", {"mode": "in_place"})
    server.post("/begin_weight_update", {"selector": "draft"})
    update = {
        "serialized_named_tensors": [payload],
        "selector": "draft",
        "flush_cache": False,
        "weight_version": version,
    }
    assert server.post("/update_weights_from_tensor", update)["success"]
    server.post("/end_weight_update", {})
    server.post("/continue_generation", {"torch_empty_cache": False})


def test_answers_without_speculation_are_sensible(answers_without_speculation: list[str]) -> None:
    assert "Paris" in answers_without_speculation[0]
    assert json.loads(answers_without_speculation[2])["city"] == "Rome"


def test_eagle_gives_the_same_answers_before_and_after_a_swap(
    model: Path, answers_without_speculation: list[str], tmp_path: Path
) -> None:
    first = write_random_draft(tmp_path / "first", model, seed=1)
    with sglang_server(model, first, extra_args=FP32) as server:
        assert answers(server) == answers_without_speculation
        before, length_before = draft_checksums(server), acceptance_length(server)
        swap_while_serving(server, write_repeating_draft(tmp_path / "repeating", model), answers_without_speculation[3])
        assert draft_checksums(server) != before
        assert answers(server) == answers_without_speculation
        assert length_before < 1.3
        assert acceptance_length(server) > 2.0
        swap(server, first, "back")
        assert draft_checksums(server) == before
        assert acceptance_length(server) < 1.3


def acceptance_length(server: Server) -> float:
    """Acceptance length on a text that repeats one token."""
    sampling = {"temperature": 0, "max_new_tokens": 48, "ignore_eos": True}
    answered = server.post("/generate", {"text": REPEATING_TEXT, "sampling_params": sampling})
    return float(answered["meta_info"]["spec_accept_length"])


def swap_while_serving(server: Server, draft: Path, expected: str) -> None:
    """Swap while a request is in flight. The request must finish with the `expected` answer."""
    received: list[str] = []
    thread = threading.Thread(target=lambda: received.append(answer(server, PROMPTS[3])[0]))
    thread.start()
    time.sleep(0.2)
    swap(server, draft, "second")
    thread.join(120)
    assert received == [expected]


def test_ngram_gives_the_same_answers(model: Path, answers_without_speculation: list[str]) -> None:
    with sglang_server(model, extra_args=[*FP32, *Ngram(4).arguments()]) as server:
        assert answers(server) == answers_without_speculation


def test_an_engine_without_a_draft_takes_no_draft_and_no_version(model: Path, tmp_path: Path) -> None:
    """SGLang itself calls an update that reaches no draft a success, and takes its version over."""
    draft = FetchedDraft(write_random_draft(tmp_path, model), 7)
    flags = [*Ngram(4).arguments(), "--custom-weight-loader", LOADER, "--weight-version", "0"]

    async def load(server: Server) -> int:
        async with open_session() as session:
            engine = SGLangClient(session, server.url)
            with pytest.raises(EngineFault, match="/weights_checker: no checksums in the answer"):
                await DraftSwap(engine).load(draft)
            return await engine.draft_version()

    with sglang_server(model, extra_args=[*FP32, *flags]) as server:
        assert asyncio.run(load(server)) == 0
        assert "Paris" in answer(server, PROMPTS[0])[0]


def test_a_tree_of_drafts_gives_the_same_answers(
    model: Path, answers_without_speculation: list[str], tmp_path: Path
) -> None:
    draft = write_random_draft(tmp_path / "draft", model)
    tree = ["--speculative-eagle-topk", "2", "--speculative-num-draft-tokens", "6"]
    with sglang_server(model, draft, extra_args=[*FP32, *tree]) as server:
        assert answers(server) == answers_without_speculation
