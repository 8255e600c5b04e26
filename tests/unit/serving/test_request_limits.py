"""Requests that would end SGLang's scheduler are refused before it, by SGLang's own functions with our hooks."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import MutableMapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aurora_runtime.serving.capture.settings import MAX_ANSWERS
from aurora_runtime.serving.protection.request_limits import (
    BATCH_FUNCTION,
    MAX_LOGPROBS,
    MAX_PROMPT_LOGPROBS,
    MAX_PROMPTS,
    VALIDATE_FUNCTION,
    BodyLimit,
    answers_hook,
    before_batch,
    before_validation,
    body_hook,
    check_sampling,
)

VOCABULARY = 100


def validate(
    input_ids: Sequence[int] | None, *, images: bool = False, processor: bool = False, top_logprobs_num: int = 0
) -> None:
    """The check of a prompt whose ids the client sent."""
    check(input_ids, input_ids, images=images, processor=processor, top_logprobs_num=top_logprobs_num)


def check(
    sent: Sequence[int] | None, prompt: Sequence[int] | None, *, images: bool, processor: bool, top_logprobs_num: int
) -> None:
    manager = SimpleNamespace(
        model_config=SimpleNamespace(vocab_size=VOCABULARY), mm_processor=object() if processor else None
    )
    request = SimpleNamespace(
        input_ids=sent, top_logprobs_num=top_logprobs_num, contains_mm_input=lambda: images, sampling_params={}
    )
    before_validation(manager, request, prompt)


@pytest.mark.parametrize("ids", [[-1], [1, 100], [2**31], [5, -(2**40)], [0, 1, 10**9]])
def test_ids_outside_the_vocabulary_are_refused(ids: list[int]) -> None:
    for images, processor in ((False, False), (True, False), (True, True)):
        with pytest.raises(ValueError, match="outside the vocabulary"):
            validate(ids, images=images, processor=processor)


@given(st.lists(st.integers(0, VOCABULARY - 1)))
def test_ids_of_the_vocabulary_pass(ids: list[int]) -> None:
    validate(ids)
    validate(None)


def test_placeholders_that_a_processor_of_images_inserts_pass() -> None:
    for sent in (None, [1]):
        check(sent, [1, 10**6], images=True, processor=True, top_logprobs_num=0)


@pytest.mark.parametrize("wanted", [-1, VOCABULARY + 1, 10**9])
def test_more_top_tokens_than_the_vocabulary_has_are_refused(wanted: int) -> None:
    with pytest.raises(ValueError, match="top_logprobs_num"):
        validate([1], top_logprobs_num=wanted)


def ask(prompt_tokens: int = 1, **fields: Any) -> None:
    manager = SimpleNamespace(model_config=SimpleNamespace(vocab_size=50_000), mm_processor=None)
    before_validation(manager, SimpleNamespace(sampling_params={}, **fields), [1] * prompt_tokens)


def test_log_probabilities_of_a_position_are_bounded() -> None:
    ask(top_logprobs_num=MAX_LOGPROBS, token_ids_logprob=[5] * MAX_LOGPROBS)
    for wanted in (MAX_LOGPROBS + 1, "5", [5]):
        with pytest.raises(ValueError, match="between 0 and 256"):
            ask(top_logprobs_num=wanted)
    with pytest.raises(ValueError, match="token_ids_logprob may have at most 256 token ids"):
        ask(token_ids_logprob=[5] * (MAX_LOGPROBS + 1))
    with pytest.raises(ValueError, match="token_ids_logprob must be a list"):
        ask(token_ids_logprob=5)


def test_log_probabilities_of_a_prompt_are_bounded() -> None:
    most = MAX_PROMPT_LOGPROBS // 200
    for start in (None, -1, 1):
        ask(most + 1, top_logprobs_num=200, logprob_start_len=start)
    for fields in ({"top_logprobs_num": 200}, {"top_logprobs_num": 100, "token_ids_logprob": [5] * 100}):
        ask(most, logprob_start_len=0, **fields)
        for start in (0, -2):
            with pytest.raises(ValueError, match="the prompt may have at most 4194304 log-probabilities"):
                ask(most + 1, logprob_start_len=start, **fields)


def test_a_session_is_refused() -> None:
    refused: list[dict[str, Any]] = [{"id": []}, {"id": "a"}, {"rid": None}]
    for session in refused:
        with pytest.raises(ValueError, match="sessions are not served; send the whole conversation"):
            ask(session_params=session)
    ask(session_params=None)
    ask(session_params={})


@pytest.mark.parametrize(
    ("params", "name"),
    [
        ({"stop_regex": "(secret+)+$"}, "stop_regex"),
        ({"stop_regex": ["a", "secret"]}, "stop_regex"),
        ({"top_k": 2**31}, "top_k"),
        ({"top_k": float("inf")}, "top_k"),
        ({"top_k": float("nan")}, "top_k"),
        ({"top_k": "secret"}, "top_k"),
        ({"min_new_tokens": 2**31}, "min_new_tokens"),
        ({"stream_interval": "secret"}, "stream_interval"),
        ({"stop_token_ids": [VOCABULARY]}, "stop_token_ids"),
        ({"stop_token_ids": [1, -1], "min_new_tokens": 1}, "stop_token_ids"),
        ({"stop_token_ids": [2**63]}, "stop_token_ids"),
        ({"stop_token_ids": [float("inf")]}, "stop_token_ids"),
        ({"stop_token_ids": ["secret"]}, "stop_token_ids"),
        ({"stop_token_ids": "secret"}, "stop_token_ids"),
        ({"logit_bias": {"5": "secret"}}, "logit_bias"),
        ({"logit_bias": {"5": None}}, "logit_bias"),
        ({"logit_bias": {"5": float("inf")}}, "logit_bias"),
        ({"logit_bias": {"5": float("nan")}}, "logit_bias"),
        ({"logit_bias": {"5": 1e39}}, "logit_bias"),
        ({"logit_bias": ["secret"]}, "logit_bias"),
    ],
)
def test_sampling_parameters_that_no_tensor_can_hold_are_refused(params: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}") as refused:
        check_sampling(params, VOCABULARY)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    "params",
    [
        {},
        dict.fromkeys(("stop_regex", "top_k", "min_new_tokens", "stream_interval", "stop_token_ids", "logit_bias")),
        {"top_k": -1, "min_new_tokens": 5, "stream_interval": 1, "stop_token_ids": [0, None, VOCABULARY - 1]},
        {"top_k": 2**30, "stop_token_ids": (), "logit_bias": {"5": -100, "6": 1e9}},
    ],
)
def test_usual_sampling_parameters_pass(params: dict[str, Any]) -> None:
    check_sampling(params, VOCABULARY)


@pytest.mark.parametrize(
    "wish",
    [
        False,
        "off",
        [],
        {"trcae": False},
        {"trace": "false"},
        {"trace": None},
        {"trace": 0},
        {"tag": ""},
        {"tag": 7},
        {"tag": None},
        {"tag": ["secret-name"]},
        {"tag": "secret-name" * 20},
        {"tag": "secret-name\ud800"},
        {"trace": True, "secret-name": 1},
    ],
)
def test_a_wish_about_traces_that_is_unclear_is_refused_and_not_shown(wish: Any) -> None:
    manager = SimpleNamespace(model_config=SimpleNamespace(vocab_size=VOCABULARY), mm_processor=None)
    request = SimpleNamespace(top_logprobs_num=0, sampling_params={"custom_params": {"aurora": wish}})
    with pytest.raises(ValueError, match=r"^custom_params\.aurora") as refused:
        before_validation(manager, request, [1])
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    "sampling_params",
    [
        None,
        {},
        {"custom_params": None},
        {"custom_params": {"thinking_budget": 5}},
        {"custom_params": {"aurora": {}}},
        {"custom_params": {"aurora": {"trace": False, "tag": "tenant-7"}}},
    ],
)
def test_a_clear_wish_and_no_wish_pass(sampling_params: Any) -> None:
    manager = SimpleNamespace(model_config=SimpleNamespace(vocab_size=VOCABULARY), mm_processor=None)
    before_validation(manager, SimpleNamespace(top_logprobs_num=0, sampling_params=sampling_params), [1])


def test_a_request_for_too_many_answers_is_refused_before_it_is_expanded() -> None:
    before_batch(SimpleNamespace(batch_size=4, parallel_sample_num=MAX_ANSWERS // 4))
    for batch, answers in ((1, 10**8), (MAX_ANSWERS, 2), (MAX_ANSWERS // 2 + 1, 2)):
        with pytest.raises(ValueError, match="at most 4096 answers"):
            before_batch(SimpleNamespace(batch_size=batch, parallel_sample_num=answers))


def test_the_limit_of_answers_is_a_setting() -> None:
    request = SimpleNamespace(batch_size=4, parallel_sample_num=2)
    answers_hook(8)(request)
    with pytest.raises(ValueError, match="at most 7 answers"):
        answers_hook(7)(request)


def test_the_limit_of_a_body_is_a_setting() -> None:
    added: dict[str, Any] = {}
    app = SimpleNamespace(add_middleware=lambda middleware, **options: added.update(options, middleware=middleware))
    assert body_hook(123)("result", app) == "result"
    assert added == {"middleware": BodyLimit, "limit_bytes": 123}


def test_a_long_list_of_prompts_with_one_answer_each_passes() -> None:
    before_batch(SimpleNamespace(batch_size=5000, parallel_sample_num=1))
    with pytest.raises(ValueError, match="at most 65536 prompts"):
        before_batch(SimpleNamespace(batch_size=MAX_PROMPTS + 1, parallel_sample_num=1))


def definitions(path: str) -> dict[str, ast.FunctionDef | ast.AsyncFunctionDef]:
    """The functions of the class that a dotted path names, by name. Reads the source, because the import is slow."""
    module, class_name = path.rsplit(".", 1)
    package = importlib.util.find_spec("sglang")
    assert package is not None
    assert package.submodule_search_locations is not None
    file = Path(package.submodule_search_locations[0], *module.split(".")[1:]).with_suffix(".py")
    found = next(n for n in ast.parse(file.read_text()).body if isinstance(n, ast.ClassDef) and n.name == class_name)
    return {one.name: one for one in found.body if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)}


def calls(function: ast.AST) -> list[str]:
    """The methods that a function calls, in the order of the source."""
    found = [n.func for n in ast.walk(function) if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute)]
    return [one.attr for one in sorted(found, key=lambda one: (one.lineno, one.col_offset))]


def test_every_way_to_sglangs_scheduler_leads_through_the_hooked_functions() -> None:
    validating, checked = VALIDATE_FUNCTION.rsplit(".", 1)
    manager = definitions(validating)
    ways = [calls(one) for one in manager.values() if "_create_tokenized_object" in calls(one)]
    assert len(ways) == 2, "single prompts, and prompts that are tokenized together"
    assert all(way.index(checked) < way.index("_create_tokenized_object") for way in ways)
    expanding, counted = BATCH_FUNCTION.rsplit(".", 1)
    request = definitions(expanding)
    assert calls(request[counted])[0] == "_expand_inputs", "nothing is expanded before the hook"


class Client:
    """Sends a body in parts to an application that reads it whole and answers 200."""

    def __init__(self, limit: int, *parts: bytes) -> None:
        self.parts, self.given, self.read = parts, 0, 0
        self.messages: list[MutableMapping[str, Any]] = []
        self.limit = BodyLimit(self._app, limit)

    async def _app(self, _scope: Any, receive: Any, send: Any) -> None:
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ConnectionError("the client went away")
            self.read += len(message["body"])
            if not message["more_body"]:
                break
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"answer"})

    async def _receive(self) -> MutableMapping[str, Any]:
        part, self.given = self.parts[self.given], self.given + 1
        return {"type": "http.request", "body": part, "more_body": self.given < len(self.parts)}

    async def _send(self, message: MutableMapping[str, Any]) -> None:
        self.messages.append(message)

    async def ask(self, **headers: str) -> int:
        raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
        await self.limit({"type": "http", "headers": raw}, self._receive, self._send)
        (start,) = (message for message in self.messages if message["type"] == "http.response.start")
        return int(start["status"])


async def test_a_body_within_the_limit_passes() -> None:
    client = Client(10, b"12345", b"67890")
    assert await client.ask(content_length="10") == 200
    assert client.read == 10


@pytest.mark.parametrize("declared", ["11", "9" * 5000])
async def test_a_body_that_says_it_is_too_large_is_not_read(declared: str) -> None:
    client = Client(10, b"1" * 11)
    assert await client.ask(content_length=declared) == 413
    assert client.given == 0


async def test_an_endless_body_is_cut_off_and_the_client_is_told() -> None:
    client = Client(10, *[b"1234"] * 1000)
    assert await client.ask(transfer_encoding="chunked") == 413
    assert client.given == 3


async def test_the_faults_of_the_application_stay_its_own() -> None:
    async def broken(*_: Any) -> None:
        raise LookupError("a bug")

    client = Client(10, b"1")
    client.limit = BodyLimit(broken, 10)
    with pytest.raises(LookupError):
        await client.ask()
