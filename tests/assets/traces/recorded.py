"""Real traces without a serving engine: SmolLM2's answers to requests, in the format that capture writes.

With these traces the trainer can be tested within seconds on the target's real hidden states and distributions.
Invariant: the tokens are the model's own greedy answers. Hidden states and top-k tokens of all positions come from one
forward pass over the final tokens, so they agree with each other.

No draft takes part, so each verify round contains only its root. Capture writes the same when a draft proposes nothing.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aurora_runtime.held_out_split import prompt_hash
from aurora_runtime.traces import ProposalSource, RequestTrace, decode, encode
from tests.assets.cache import cache_root
from tests.assets.model import causal_model, ensure_model
from tests.cluster.file_lock import exclusive_lock
from tests.traffic.prompts import Domain, prompts

REVISION = 3
"""A part of the cached files' names. Raise it when the generation below changes."""
TOP_K = 32
MAX_NEW_TOKENS = 64
GENERATION_BATCH = 50
DOMAIN_SEED = 5


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NAMES = _words("""
    Alice Bruno Chiara Dmitri Elena Farid Greta Hassan Ingrid Jonas Keiko Lars Maria Nadia Omar Priya Quentin Rosa
    Stefan Tomoko Ulrich Vera Wei Ximena Yusuf Zoe
""")
CITIES = _words("""
    Paris Berlin Madrid Rome Vienna Prague Lisbon Dublin Oslo Athens Warsaw Helsinki Budapest Cairo Nairobi Lima
    Quito Boston Chicago Denver Toronto Sydney Osaka Seoul Mumbai
""")
ITEMS = _words("""
    lamps chairs books bottles bicycles laptops blankets mirrors baskets candles jackets shovels guitars clocks
    plates
""")
NUMBERS = _words("two three four five six seven eight nine ten twelve")
SENTENCES = (
    "{name} from {city} ordered {number} {item}.",
    "A customer in {city} named {name} bought {number} {item}.",
    "{name}, who lives in {city}, wants {number} {item}.",
)
EXTRACTION_TASK = (
    "Extract name, city, item and quantity as JSON.\n"
    'Sentence: "Maria from Madrid ordered three lamps."\n'
    'JSON: {{"name": "Maria", "city": "Madrid", "item": "lamps", "quantity": 3}}\n'
    'Sentence: "{sentence}"\nJSON:'
)
"""The example makes the model answer with one flat object. Without it the model nests objects until the token limit."""


def json_messages(count: int) -> list[str]:
    """``count`` distinct user messages that ask for a sentence's facts as JSON, with an example."""
    rng, messages = random.Random(0), dict[str, None]()  # noqa: S311 - reproducible data, no secret
    while len(messages) < count:
        sentence = rng.choice(SENTENCES).format(
            name=rng.choice(NAMES), city=rng.choice(CITIES), number=rng.choice(NUMBERS), item=rng.choice(ITEMS)
        )
        messages.setdefault(EXTRACTION_TASK.format(sentence=sentence))
    return list(messages)


def aux_layers(layers: int) -> tuple[int, int, int]:
    """Indices into transformers' ``hidden_states`` of the states that SGLang captures for EAGLE-3 by default
    (sglang/srt/models/llama.py:936). Entry ``i`` of ``hidden_states`` is the input of layer ``i``."""
    return 2, layers // 2, layers - 3


def record(model: Any, tokens: Tensor, prompt_length: int) -> RequestTrace:
    """The trace of ``tokens``, ``[L]``. The first ``prompt_length`` of them are the prompt."""
    with torch.inference_mode():
        out = model(tokens[None].long(), output_hidden_states=True)
    captured_layers = aux_layers(model.config.num_hidden_layers)
    length = tokens.shape[0]
    hidden = torch.cat([out.hidden_states[i][0, : length - 1] for i in captured_layers], dim=-1).to(torch.bfloat16)
    root = torch.arange(prompt_length, length - 1, dtype=torch.int32)
    logprobs = out.logits[0, prompt_length : length - 1].float().log_softmax(-1)
    top = logprobs.topk(TOP_K)
    rounds = root.shape[0]
    return RequestTrace(
        request=prompt_hash(tokens[:prompt_length].tolist()),
        prompt_length=prompt_length,
        hidden_start=0,
        tokens=tokens.to(torch.int32),
        hidden=hidden,
        root=root,
        node_count=torch.ones(rounds, dtype=torch.int32),
        accepted=torch.zeros(rounds, dtype=torch.int32),
        version=torch.zeros(rounds, dtype=torch.int32),
        source=torch.full((rounds,), ProposalSource.NONE, dtype=torch.uint8),
        node_token=tokens[prompt_length : length - 1].to(torch.int32),
        node_parent=torch.full((rounds,), -1, dtype=torch.int16),
        node_accepted=torch.ones(rounds, dtype=torch.bool),
        top_ids=top.indices.to(torch.int32),
        top_logprobs=top.values.to(torch.float16),
        uncaptured_mass=(1 - top.values.exp().sum(-1)).clamp(0, 1).to(torch.float16),
    )


def generate(messages: Sequence[str]) -> Iterator[RequestTrace]:
    """Answer each message greedily, in batches, and record the answers.

    An answer ends with the end token or after :data:`MAX_NEW_TOKENS`.
    """
    from transformers import AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(ensure_model(), padding_side="left"), causal_model()
    texts = [
        tokenizer.apply_chat_template([{"role": "user", "content": m}], tokenize=False, add_generation_prompt=True)
        for m in messages
    ]
    for start in range(0, len(texts), GENERATION_BATCH):
        batch = tokenizer(texts[start : start + GENERATION_BATCH], return_tensors="pt", padding=True)
        with torch.inference_mode():
            out = model.generate(**batch, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        width = batch["input_ids"].shape[1]
        for row, mask in zip(out, batch["attention_mask"], strict=True):
            prompt, answer = row[:width][mask.bool()], row[width:]
            ends = (answer == model.config.eos_token_id).nonzero()
            answer = answer[: int(ends[0]) + 1] if ends.numel() else answer
            yield record(model, torch.cat([prompt, answer]), prompt.shape[0])


def json_traces(count: int = 160) -> list[RequestTrace]:
    """``count`` traces of :func:`json_messages`."""
    return recorded("json", json_messages(count))


def domain_traces(domain: Domain, count: int = 160) -> list[RequestTrace]:
    """``count`` traces of prompts of :mod:`tests.traffic`."""
    return recorded(domain, domain_messages(domain, count))


def domain_messages(domain: Domain, count: int) -> list[str]:
    """The first ``count`` prompts of a domain of :mod:`tests.traffic`."""
    return list(itertools.islice(prompts(domain, DOMAIN_SEED), count))


def recorded(name: str, messages: Sequence[str]) -> list[RequestTrace]:
    """The traces of ``messages``, from the cache if it has them."""
    return cached_traces(cache_name(name, messages, REVISION), lambda: generate(messages))


def cache_name(name: str, messages: Sequence[str], revision: int) -> str:
    """A name for traces in the cache. It changes with the messages."""
    digest = hashlib.sha256("\0".join(messages).encode()).hexdigest()[:8]
    return f"{name}-{digest}-r{revision}-{len(messages)}"


def cached_traces(name: str, make: Callable[[], Iterable[RequestTrace]]) -> list[RequestTrace]:
    """The traces in the cache under ``name``. If there are none, ``make`` makes them, on one thread.

    160 requests take about two minutes of one core.
    """
    folder = cache_root() / "traces"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.safetensors"
    with exclusive_lock(folder / f".{path.name}.lock"):
        if not path.exists():
            threads = torch.get_num_threads()
            torch.set_num_threads(1)
            try:
                _write(path, encode(list(make())))
            finally:
                torch.set_num_threads(threads)
    return list(decode(path.read_bytes()))


def _write(path: Path, data: bytes) -> None:
    unfinished = path.with_suffix(".part")
    unfinished.write_bytes(data)
    unfinished.rename(path)
