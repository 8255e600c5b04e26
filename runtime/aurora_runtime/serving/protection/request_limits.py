"""Refuses requests that would end SGLang's scheduler, or whose wish about traces is unclear, before the scheduler.

SGLang 0.5.23 checks the length of a prompt. It does not check whether the token ids of ``input_ids`` are in the
vocabulary, whether as many top log-probabilities exist as a client asks for, whether its tensors can hold the sampling
parameters, how many answers ``n`` asks for, or how large a body is. Each of the first three ends the scheduler, and
with it every request of the pod. Two such ends would also refuse a draft that is not to blame. A session with a wrong
id ends the scheduler too, and a regular expression may hang it.

A request that asks not to be traced in a form that nobody understands must not be traced by mistake, so it is refused
too.

The hooks raise ValueError, which SGLang answers with status 400. Invariant: a request within the limits passes
unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final

from aurora_runtime.request_privacy import trace_wish
from aurora_runtime.serving.capture.settings import MAX_ANSWERS
from aurora_runtime.serving.protection.asgi import Application, Message, Receive, Scope, Send, send_text

VALIDATE_FUNCTION: Final = "sglang.srt.managers.tokenizer_manager.TokenizerManager._validate_one_request"
"""Called once for each prompt, with its token ids, before it is sent to the scheduler."""
BATCH_FUNCTION: Final = "sglang.srt.managers.io_struct.GenerateReqInput._normalize_batch_inputs"
"""Called once for each request of several prompts or answers, before the request is expanded to one of each."""

MAX_PROMPTS: Final = 65_536
"""Most prompts of a request."""
MAX_LOGPROBS: Final = 256
"""Most log-probabilities of one position, among the likeliest tokens and among those that a client names."""
MAX_PROMPT_LOGPROBS: Final = 1 << 22
"""Most log-probabilities of a whole prompt. SGLang holds about 70 bytes for each."""
MAX_TOP_K: Final = 1 << 30
"""SGLang's number for the whole vocabulary. Its tensor has 32 bits."""
MAX_INT32: Final = (1 << 31) - 1
MAX_LOGIT_BIAS: Final = 1e30
"""Sums with such a bias stay finite in float32."""
_MAX_DIGITS: Final = 18
"""Digits of a content length that is worth parsing."""


def before_validation(manager: Any, obj: Any, input_ids: Sequence[int] | None) -> None:
    """Runs before ``_validate_one_request``. Raises ValueError for a request that the scheduler would not survive,
    and for one whose wish about its traces is unclear.

    A session would put the text of an earlier turn before a later one, whatever the earlier turn asked about its
    traces. So sessions are refused.
    """
    vocabulary = int(manager.model_config.vocab_size)
    # A processor of images may insert ids of its own, so only the client's ids are checked beside images.
    has_images = manager.mm_processor is not None and obj.contains_mm_input()
    ids = obj.input_ids if has_images else input_ids
    if ids and not 0 <= min(ids) <= max(ids) < vocabulary:
        raise ValueError(f"input_ids: a token id is outside the vocabulary; valid ids are 0 to {vocabulary - 1}")
    if getattr(obj, "session_params", None):
        raise ValueError("session_params: sessions are not served; send the whole conversation with each request")
    _check_logprobs(obj, len(input_ids or ()), vocabulary)
    if isinstance(sampling_params := obj.sampling_params, dict):
        check_sampling(sampling_params, vocabulary)
        trace_wish(sampling_params.get("custom_params"))


def _check_logprobs(obj: Any, prompt_tokens: int, vocabulary: int) -> None:
    """Raises ValueError for more log-probabilities than exist, or than the memory of a pod should hold."""
    top, most = getattr(obj, "top_logprobs_num", None) or 0, min(vocabulary, MAX_LOGPROBS)
    if not (isinstance(top, int) and 0 <= top <= most):
        raise ValueError(f"top_logprobs_num (logprobs, top_logprobs) must be between 0 and {most}")
    named = len(_listed(getattr(obj, "token_ids_logprob", None), "token_ids_logprob"))
    if named > MAX_LOGPROBS:
        raise ValueError(f"token_ids_logprob may have at most {MAX_LOGPROBS} token ids")
    start = getattr(obj, "logprob_start_len", None)
    if not isinstance(start, int) or start == -1:
        return  # no log-probabilities of the prompt
    if (top + named) * (prompt_tokens - max(start, 0)) > MAX_PROMPT_LOGPROBS:
        raise ValueError(
            f"the prompt may have at most {MAX_PROMPT_LOGPROBS} log-probabilities: ask for fewer at each position, or"
            " raise logprob_start_len"
        )


def check_sampling(params: Mapping[str, Any], vocabulary: int) -> None:
    """Raises ValueError for parameters that SGLang's scheduler cannot put into its tensors, or that may hang it.

    A ``stop_regex`` is refused too: SGLang searches for it after each token in the scheduler, without a time limit.

    The others fail in ``SamplingBatchInfo.from_schedule_batch`` (sglang/srt/sampling/sampling_batch_info.py),
    ``penaltylib/min_new_tokens.py`` and ``output_streamer.py``. The ids of ``stop_token_ids`` fail as soon as any
    request of the batch has ``min_new_tokens``.
    """
    if params.get("stop_regex"):
        raise ValueError("stop_regex is not served, because some patterns take for ever: use stop")
    for name, most in (("top_k", MAX_TOP_K), ("min_new_tokens", MAX_INT32), ("stream_interval", MAX_INT32)):
        value = params.get(name)
        if value is not None and not (isinstance(value, int | float) and value <= most):
            raise ValueError(f"{name} must be a number of at most {most}")
    if not all(_is_token(token, vocabulary) for token in _listed(params.get("stop_token_ids"), "stop_token_ids")):
        raise ValueError(f"stop_token_ids: valid ids are 0 to {vocabulary - 1}")
    bias = params.get("logit_bias")
    if bias is not None and not isinstance(bias, dict):
        raise ValueError("logit_bias must be an object of token ids and numbers")
    if not all(isinstance(value, int | float) and abs(value) <= MAX_LOGIT_BIAS for value in (bias or {}).values()):
        raise ValueError(f"logit_bias: a value must be a number between -{MAX_LOGIT_BIAS:g} and {MAX_LOGIT_BIAS:g}")


def _listed(value: Any, name: str) -> Collection[Any]:
    if value is None:
        return ()
    if not isinstance(value, list | tuple | set):
        raise ValueError(f"{name} must be a list")  # noqa: TRY004 - SGLang answers a ValueError with status 400
    return value


def _is_token(value: Any, vocabulary: int) -> bool:
    """Whether SGLang, which leaves out None and takes ``int`` of all others, gets an id of the vocabulary."""
    try:
        return value is None or 0 <= int(value) < vocabulary
    except (TypeError, ValueError, OverflowError):
        return False


def before_batch(obj: Any, max_answers: int = MAX_ANSWERS) -> None:
    """Runs before ``_normalize_batch_inputs``. Raises ValueError for a request of too many prompts or answers.

    ``max_answers`` bounds a request with ``n`` above 1: prompts times ``n``.
    """
    if obj.batch_size > MAX_PROMPTS:
        raise ValueError(f"a request may have at most {MAX_PROMPTS} prompts")
    if obj.parallel_sample_num > 1 and obj.batch_size * obj.parallel_sample_num > max_answers:
        raise ValueError(f"with n above 1 a request may ask for at most {max_answers} answers, prompts times n")


class BodyLimit:
    """ASGI middleware. Refuses a body whose declared length is too large, and stops reading at the limit."""

    def __init__(self, app: Application, limit_bytes: int) -> None:
        self._app, self._limit_bytes = app, limit_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"")
        if declared.isdigit() and (len(declared) > _MAX_DIGITS or int(declared) > self._limit_bytes):
            await self._refuse(send)
            return
        received, started = 0, False

        async def counted_receive() -> Message:
            nonlocal received
            if received > self._limit_bytes:
                return {"type": "http.disconnect"}
            message = await receive()
            received += len(message.get("body", b""))
            return message if received <= self._limit_bytes else {"type": "http.disconnect"}

        async def noted_send(message: Message) -> None:
            nonlocal started
            if received <= self._limit_bytes:
                started = started or message["type"] == "http.response.start"
                await send(message)

        try:
            await self._app(scope, counted_receive, noted_send)
        except Exception:
            # SGLang's reader of a body that was cut off raises. Only the client is to blame.
            if received <= self._limit_bytes or started:
                raise
        if received > self._limit_bytes and not started:
            await self._refuse(send)

    async def _refuse(self, send: Send) -> None:
        text = b"the body of a request may have at most %d bytes\n" % self._limit_bytes
        await send_text(send, 413, text, [(b"connection", b"close")])


def answers_hook(max_answers: int) -> Callable[[Any], None]:
    """The hook of :data:`BATCH_FUNCTION` for this limit of answers."""

    def before(obj: Any) -> None:
        before_batch(obj, max_answers)

    return before


def body_hook(max_body_bytes: int) -> Callable[..., Any]:
    """The hook after SGLang's authentication that puts :class:`BodyLimit` before SGLang's routes."""

    def after(result: Any, app: Any, *_: Any, **__: Any) -> Any:
        app.add_middleware(BodyLimit, limit_bytes=max_body_bytes)
        return result

    return after
