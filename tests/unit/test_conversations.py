"""All turns of a conversation are on one side of the held-out split, and few-shot traffic is on both sides."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aurora_runtime.conversations import (
    MAX_PROMPTS,
    REMEMBERED_BEGINNINGS,
    ConversationSplit,
    Message,
    Render,
    answer_marker,
    beginning,
    may_share,
)
from aurora_runtime.held_out_split import PROMPTS_PER_HELD_OUT, is_held_out, prompt_hash

START, END, HEADER_END, NEWLINE, TWO_NEWLINES, THINK, THINK_END = 1, 2, 3, 10, 11, 12, 13
ROLES = {"system": 4, "user": 5, "assistant": 6}
TEXT = 100
"""Tokens from here on are text. No text holds a token of a template."""


def text(content: str) -> list[int]:
    return [TEXT + ord(character) for character in content]


def chatml(messages: list[Message]) -> list[int]:
    """As Qwen, SmolLM and Gemma: each turn has a header and an end, whoever speaks."""
    turns = [[START, ROLES[m["role"]], NEWLINE, *text(m["content"]), END, NEWLINE] for m in messages]
    return [*chain(*turns), START, ROLES["assistant"], NEWLINE]


def llama(messages: list[Message]) -> list[int]:
    """As Llama 3: the header of each role ends alike."""
    turns = [[START, ROLES[m["role"]], HEADER_END, NEWLINE, *text(m["content"]), END] for m in messages]
    return [0, *chain(*turns), START, ROLES["assistant"], HEADER_END, NEWLINE]


def deepseek(messages: list[Message]) -> list[int]:
    """As DeepSeek: only answers end with an end token."""
    turns = [
        [*([ROLES[m["role"]]] if m["role"] != "system" else []), *text(m["content"])]
        + ([END] if m["role"] == "assistant" else [])
        for m in messages
    ]
    return [0, *chain(*turns), ROLES["assistant"]]


def mistral(messages: list[Message]) -> list[int]:
    """As Mistral: a question stands between two tokens, an answer before an end token."""
    around = {"system": (NEWLINE, NEWLINE), "user": (START, HEADER_END), "assistant": (THINK, END)}
    turns = [[around[m["role"]][0], *text(m["content"]), around[m["role"]][1]] for m in messages]
    return [0, *chain(*turns)]


def thinking(messages: list[Message]) -> list[int]:
    """As DeepSeek R1 and QwQ: the request for an answer begins a thought, which earlier turns lack."""
    return [*chatml(messages), THINK, NEWLINE]


def merging(messages: list[Message]) -> list[int]:
    """As a tokenizer that makes one token of two newlines, in a template that keeps an answer's first one."""
    tokens = chatml([{**m, "content": m["content"].replace("\n\n", "\n")} for m in messages])
    pairs = zip(tokens, [*tokens[1:], 0], strict=True)
    merged, skip = list[int](), False
    for one, other in pairs:
        if skip:
            skip = False
            continue
        skip = (one, other) == (NEWLINE, TEXT + ord("\n"))
        merged.append(TWO_NEWLINES if skip else one)
    return merged


TEMPLATES: dict[str, Render] = {each.__name__: each for each in (chatml, llama, deepseek, mistral, thinking, merging)}
overlapping = st.sampled_from([0, 1, 256, 65536])
"""Tokens whose bytes overlap: 1 and 256 have the same bytes, moved by one."""
contents = st.text(st.characters(codec="ascii"), min_size=1, max_size=6)


def turns(render: Render, system: str, exchanges: Sequence[tuple[str, str]]) -> list[list[int]]:
    """The prompts of a client's turns, each with all turns before it."""
    messages: list[Message] = [{"role": "system", "content": system}] if system else []
    prompts = []
    for question, answer in exchanges:
        messages.append({"role": "user", "content": question})
        prompts.append(list(render(messages)))
        messages.append({"role": "assistant", "content": answer})
    return prompts


@pytest.mark.parametrize("template", TEMPLATES)
@given(
    system=st.just("") | contents,
    exchanges=st.lists(st.tuples(contents, contents), min_size=1, max_size=5),
    key=st.binary(min_size=32, max_size=32),
)
def test_all_turns_of_a_conversation_are_on_one_side(
    template: str, system: str, exchanges: list[tuple[str, str]], key: bytes
) -> None:
    render = TEMPLATES[template]
    marker, split = answer_marker(render), ConversationSplit(key)
    prompts = turns(render, system, exchanges)
    (first,) = {tuple(beginning(prompt, marker)) for prompt in prompts}
    assert first + marker == tuple(prompts[0][: len(first) + len(marker)])
    assert len({split.number(prompt, marker) for prompt in prompts}) == 1


@pytest.mark.parametrize("template", TEMPLATES)
def test_conversations_that_share_a_system_prompt_are_drawn_apart(template: str) -> None:
    render, split = TEMPLATES[template], ConversationSplit()
    marker = answer_marker(render)
    prompts = [turns(render, "rules", [(str(n), "yes"), ("why?", "so")])[-1] for n in range(1000)]
    held_out = sum(is_held_out(split.number(prompt, marker)) for prompt in prompts)
    assert 0.7 < PROMPTS_PER_HELD_OUT * held_out / len(prompts) < 1.3


def test_turns_that_think_and_turns_that_do_not_are_on_one_side() -> None:
    """As DeepSeek V3.1: a request says whether to think, and the prompt ends accordingly."""

    def quiet(messages: list[Message]) -> list[int]:
        prompt = list[int]()
        for token in deepseek(messages):
            prompt += [token, THINK_END] if token == ROLES["assistant"] else [token]
        return prompt

    def thoughtful(messages: list[Message]) -> list[int]:
        return [*quiet(messages)[:-1], THINK]

    assert answer_marker(quiet) == (ROLES["assistant"], THINK_END)
    marker = answer_marker(quiet, thoughtful)
    assert marker == (ROLES["assistant"],)
    exchanges = [("a", "b"), ("c", "d"), ("e", "f")]
    prompts = [*turns(quiet, "rules", exchanges), *turns(thoughtful, "rules", exchanges)]
    assert len({tuple(beginning(prompt, marker)) for prompt in prompts}) == 1


def test_few_shot_traffic_is_drawn_by_its_whole_prompts_and_so_on_both_sides() -> None:
    """All requests begin with the same question and answer. Drawn by these, all or none would be held out."""
    split, marker = ConversationSplit(), answer_marker(chatml)
    prompts = [turns(chatml, "rules", [("example", "answer"), (str(n), "")])[-1] for n in range(2000)]
    numbers = [split.number(prompt, marker) for prompt in prompts]
    assert len(set(numbers[:MAX_PROMPTS])) == 1
    assert numbers[MAX_PROMPTS:] == [prompt_hash(prompt) for prompt in prompts[MAX_PROMPTS:]]
    assert split.number(prompts[0], marker) == prompt_hash(prompts[0]) != numbers[0], "the first ones change too"
    held_out = sum(map(is_held_out, numbers[MAX_PROMPTS:]))
    assert 0.7 < PROMPTS_PER_HELD_OUT * held_out / len(numbers[MAX_PROMPTS:]) < 1.3


def test_the_memory_of_conversations_is_bounded() -> None:
    split, marker = ConversationSplit(), answer_marker(chatml)
    for number in range(3 * REMEMBERED_BEGINNINGS):
        split.number(turns(chatml, "", [(str(number), "")])[0], marker)
    for number in range(3 * MAX_PROMPTS):
        split.number(turns(chatml, "", [("same", ""), (str(number), "")])[-1], marker)
    assert len(split._prompts) == REMEMBERED_BEGINNINGS
    assert max(map(len, split._prompts.values())) == MAX_PROMPTS + 1


@given(st.lists(overlapping, max_size=30), st.lists(overlapping, max_size=2))
@example([256, 0, 1], [1])
def test_the_beginning_ends_before_the_first_marker(prompt: list[int], marker: list[int]) -> None:
    places = [at for at in range(len(prompt)) if marker and prompt[at : at + len(marker)] == marker]
    assert list(beginning(prompt, marker)) == (prompt[: places[0]] if places else prompt)


@pytest.mark.parametrize(
    "render",
    [
        lambda messages: [token for m in messages for token in text(m["content"])],
        lambda messages: [7],
        lambda messages: [],
    ],
    ids=["no markers", "always the same", "nothing"],
)
def test_a_template_without_markers_leaves_each_prompt_to_itself(render: Render) -> None:
    assert answer_marker(render) == ()
    prompt = chatml([{"role": "user", "content": "hello"}])
    assert ConversationSplit(b"key").number(prompt, ()) == prompt_hash(prompt, b"key")


def test_what_is_held_out_as_a_prompt_or_as_a_conversation_is_not_shared() -> None:
    marker, key = answer_marker(chatml), b"key"
    prompts = [turns(chatml, "", [(str(n), "yes"), ("why?", "")])[-1] for n in range(2000)]
    kept = [prompt for prompt in prompts if may_share(prompt, marker, key)]
    assert not any(is_held_out(prompt_hash(prompt, key)) for prompt in kept)
    assert not any(is_held_out(ConversationSplit(key).number(prompt, marker)) for prompt in kept)
    assert 0.7 < len(kept) / len(prompts) < 0.83
    assert not may_share([1, 2**40], (), key), "a placeholder has no hash"
