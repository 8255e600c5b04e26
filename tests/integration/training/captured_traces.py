"""Requests for a pod with capture, and checks of their traces against the answers and against transformers."""

from __future__ import annotations

import json
import time
import warnings
from pathlib import Path
from typing import Any

import torch

from aurora_runtime.conversations import ConversationSplit, Message, answer_marker
from aurora_runtime.held_out_split import is_held_out
from aurora_runtime.pod_registry import PodRegistry
from aurora_runtime.traces import RequestTrace, decode
from tests.assets.pod_processes import http_body

STEPS = 3
"""Draft steps of the engines whose traces are checked."""


def load_tokenizer(target: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(target)


def frequent_tokens(target: Path) -> list[int]:
    tokenizer = load_tokenizer(target)
    texts = ("7", "\n", ",", " the", ".", " a", " and", " of")
    return [int(tokenizer.encode(text, add_special_tokens=False)[0]) for text in texts]


def rendered(target: Path, messages: list[Message]) -> list[int]:
    """The token ids of the prompt that asks for an answer to these messages."""
    tokenizer = load_tokenizer(target)
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return [int(token) for token in tokenizer.encode(text, add_special_tokens=False)]


def chat_prompt(target: Path, question: str) -> list[int]:
    return rendered(target, [{"role": "user", "content": question}])


def conversation_number(target: Path, prompt: list[int], key: bytes) -> int:
    """The ``request`` of a trace of this prompt."""
    return ConversationSplit(key).number(prompt, answer_marker(lambda messages: rendered(target, messages)))


def prompts_of(target: Path) -> list[list[int]]:
    repeat = [int(t) for t in load_tokenizer(target).encode("My number is 7777777777777", add_special_tokens=False)]
    questions = (
        "What is the capital of France? Answer in one word.",
        "Name three colours.",
        "Say hello.",
    )
    return [repeat, *(chat_prompt(target, question) for question in questions)]


def generate(url: str, prompt: list[int], tokens: int = 32) -> dict[str, Any]:
    body = {"input_ids": prompt, "sampling_params": {"temperature": 0, "max_new_tokens": tokens}}
    answer: dict[str, Any] = json.loads(http_body(f"{url}/generate", body))
    return answer


def on_each_route(target: Path, question: str, wish: Any) -> list[tuple[str, dict[str, Any]]]:
    """The question with a wish about its traces on each route that takes it, as the ``openai`` client sends it."""
    custom_params, ids = {"aurora": wish}, chat_prompt(target, question)
    common = {"model": "default", "max_tokens": 4, "temperature": 0, "custom_params": custom_params}
    return [
        ("/v1/chat/completions", common | {"messages": [{"role": "user", "content": question}]}),
        ("/v1/completions", common | {"prompt": ids}),
        ("/generate", {"input_ids": ids, "sampling_params": {"max_new_tokens": 4, "custom_params": custom_params}}),
    ]


def collect_traces(
    registry: PodRegistry, wanted: set[tuple[int, ...]], *, timeout: float = 60
) -> dict[tuple[int, ...], RequestTrace]:
    """Traces in the store by their tokens, once all wanted traces are there."""
    found: dict[tuple[int, ...], RequestTrace] = {}
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        for key in list(registry.list_shards(1).data_bytes):
            _, data = registry.shard(key)
            found |= {tuple(trace.tokens.tolist()): trace for trace in decode(data)}
        if wanted <= found.keys():
            return found
        time.sleep(0.5)
    raise TimeoutError(f"{len(wanted - found.keys())} of {len(wanted)} traces are not in the store")


def check_trace(
    trace: RequestTrace, prompt: list[int], answer: dict[str, Any], number: int, *, most_steps: int = STEPS
) -> None:
    """Check a trace against the answer.

    Args:
        number: decides on which side of the split the request is.
        most_steps: most tokens that a round of the engine proposes.
    """
    output, meta = answer["output_ids"], answer["meta_info"]
    tokens = trace.tokens.tolist()
    assert tokens == prompt + output
    assert trace.prompt_length == len(prompt)
    assert trace.request == number
    assert trace.held_out == is_held_out(number)
    assert trace.hidden_start <= meta["cached_tokens"], "what the prefix cache holds was not computed"
    if meta["num_retractions"] == 0:
        assert trace.hidden_start == meta["cached_tokens"]
    end = trace.hidden_start + trace.hidden.shape[0]
    assert len(tokens) - 1 <= end <= len(tokens)
    assert trace.root.shape[0] == meta["spec_verify_ct"]
    beyond_the_end = meta["spec_num_correct_drafts"] - int(trace.accepted.sum())
    assert 0 <= beyond_the_end <= most_steps
    at, reached, retractions = 0, len(prompt), meta["num_retractions"]
    for root, nodes, accepted in zip(
        trace.root.tolist(), trace.node_count.tolist(), trace.accepted.tolist(), strict=True
    ):
        skipped = root - reached  # a retracted request's second prefill commits a token too
        retractions -= skipped
        assert skipped in (0, 1)
        assert retractions >= 0, "a round starts at the last committed token"
        path = [at + i for i in range(nodes) if trace.node_accepted[at + i]]
        assert len(path) == accepted + 1
        for step, node in enumerate(path):
            assert trace.node_token[node] == tokens[root + step]
            if root + step + 1 < len(tokens):
                assert trace.top_ids[node, 0] == tokens[root + step + 1], "greedy: the answer is the most likely token"
        parents = trace.node_parent[at : at + nodes].tolist()
        assert parents[0] == -1
        assert all(0 <= parent < node for node, parent in enumerate(parents) if node)
        at += nodes
        reached = root + accepted + 1
    mass = trace.top_logprobs.float().exp().sum(-1) + trace.uncaptured_mass.float()
    assert torch.allclose(mass, torch.ones_like(mass), atol=5e-3)


def check_states(trace: RequestTrace, target: Path) -> None:
    """Check that each captured state belongs to its position, by a forward pass of transformers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32)
        with torch.no_grad():
            states = model(trace.tokens.long().unsqueeze(0), output_hidden_states=True).hidden_states
    layers = len(states) - 1
    expected = torch.cat([states[i][0] for i in (2, layers // 2, layers - 3)], dim=-1)
    rows = slice(trace.hidden_start, trace.hidden_start + trace.hidden.shape[0])
    similarity = torch.nn.functional.cosine_similarity(trace.hidden.float(), expected[rows], dim=-1)
    assert float(similarity.min()) > 0.999
    shifted = torch.nn.functional.cosine_similarity(trace.hidden[1:].float(), expected[rows][:-1], dim=-1)
    assert float(shifted.mean()) < 0.99, "the comparison can tell positions apart"
