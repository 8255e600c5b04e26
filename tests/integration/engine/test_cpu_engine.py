"""The CPU engine on real servers: answers do not depend on speculation, and a swap of the draft takes effect."""

from __future__ import annotations

import asyncio
import base64
import json
import pickle
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aurora_runtime.engine.draft_swap import DraftSwap
from aurora_runtime.engine.draft_update import LOADER
from aurora_runtime.engine.sglang_client import SGLangClient, open_session
from aurora_runtime.engine.speculation_flags import Ngram
from aurora_runtime.errors import EngineFault
from aurora_runtime.validation.store_reads import FetchedDraft
from tests.assets.model import ensure_model
from tests.assets.random_draft import REPEATING_TEXT, write_random_draft, write_repeating_draft
from tests.assets.sglang_server import Server, sglang_server
from tests.integration.engine.plain_answers import (
    FIXED_TOKENS,
    FP32,
    QUESTIONS,
    PlainAnswers,
    chat,
    chat_answers,
    token_prompts,
)

pytestmark = pytest.mark.timeout(1500)


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


def test_answers_without_speculation_are_sensible(plain: PlainAnswers) -> None:
    assert "Paris" in plain.chat[0]
    assert json.loads(plain.chat[2])["city"] == "Rome"


def test_eagle_gives_the_same_answers_before_and_after_a_swap(plain: PlainAnswers, tmp_path: Path) -> None:
    model = ensure_model()
    first = write_random_draft(tmp_path / "first", model, seed=1)
    with sglang_server(model, first, extra_args=FP32, stop_seconds=0) as server:
        assert chat_answers(server) == plain.chat
        before, length_before = draft_checksums(server), acceptance_length(server)
        swap_while_serving(server, write_repeating_draft(tmp_path / "repeating", model), plain.chat[3])
        assert draft_checksums(server) != before
        assert chat_answers(server) == plain.chat
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
    thread = threading.Thread(target=lambda: received.append(chat(server, QUESTIONS[3])))
    thread.start()
    time.sleep(0.2)
    swap(server, draft, "second")
    thread.join(120)
    assert received == [expected]


@pytest.fixture(scope="module")
def ngram(plain: PlainAnswers) -> Iterator[Server]:
    """A server without a draft, with the loader and the version of a pod. The last of this module.

    It starts after the server of `plain` has ended.
    """
    flags = [*Ngram(4).arguments(), "--custom-weight-loader", LOADER, "--weight-version", "0"]
    with sglang_server(ensure_model(), extra_args=[*FP32, *flags], stop_seconds=0) as server:
        yield server


def test_ngram_gives_the_same_answers(plain: PlainAnswers, ngram: Server) -> None:
    assert chat_answers(ngram) == plain.chat


def test_every_token_is_sampled_as_the_request_asks(plain: PlainAnswers, ngram: Server) -> None:
    """SGLang itself samples an answer's first token only on a CPU, and goes on with the most likely ones."""
    prompt = token_prompts()[2]

    def answers(**sampling: float) -> list[list[int]]:
        wanted = {"max_new_tokens": FIXED_TOKENS, "ignore_eos": True, **sampling}
        given = ngram.post("/generate", {"input_ids": prompt, "sampling_params": wanted})
        return [each["output_ids"] for each in given] if isinstance(given, list) else [given["output_ids"]]

    assert answers(temperature=1.0, top_k=1) == [plain.tokens[2]]
    sampled = answers(temperature=1.5, n=8)
    beginnings = [prompt + answer[:1] for answer in sampled]
    greedy = {"temperature": 0, "max_new_tokens": FIXED_TOKENS - 1, "ignore_eos": True}
    likely = ngram.post("/generate", {"input_ids": beginnings, "sampling_params": greedy})
    followed = [answer[1:] == each["output_ids"] for answer, each in zip(sampled, likely, strict=True)]
    assert not all(followed)
    assert len({tuple(answer) for answer in sampled}) == len(sampled)


def test_an_engine_without_a_draft_takes_no_draft_and_no_version(ngram: Server, tmp_path: Path) -> None:
    """SGLang itself calls an update that reaches no draft a success, and takes its version over."""
    draft = FetchedDraft(write_random_draft(tmp_path, ensure_model()), 7)

    async def load() -> int:
        async with open_session() as session:
            engine = SGLangClient(session, ngram.url)
            with pytest.raises(EngineFault, match="/weights_checker: no checksums in the answer"):
                await DraftSwap(engine).load(draft)
            return await engine.draft_version()

    assert asyncio.run(load()) == 0
    assert "Paris" in chat(ngram, QUESTIONS[0])
