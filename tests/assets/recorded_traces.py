"""Real traces without a serving engine: what SmolLM2 answers to requests, recorded as capture would.

They exist so that the trainer can be developed and tested on the target's true hidden states and distributions within
seconds. Invariant: a position's hidden states and top-k are those of one teacher-forced pass over the final tokens, so
they agree with each other; the tokens are the model's own greedy answers.

Rounds hold their root only (the engine's shape when speculation proposes nothing): no draft took part.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import itertools
import json
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aurora_runtime.traces import RequestTrace, decode, encode, prompt_hash
from tests.assets.cache import cache_root
from tests.assets.model import causal_model, ensure_model
from tests.traffic.prompts import Domain
from tests.traffic.prompts import prompts as traffic

REVISION = 2
"""Part of the cache's name: raise it when the generation below changes."""
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
FORMS = (
    "{name} from {city} ordered {number} {item}.",
    "A customer in {city} named {name} bought {number} {item}.",
    "{name}, who lives in {city}, wants {number} {item}.",
)
TASK = (
    "Extract name, city, item and quantity as JSON.\n"
    'Sentence: "Maria from Madrid ordered three lamps."\n'
    'JSON: {{"name": "Maria", "city": "Madrid", "item": "lamps", "quantity": 3}}\n'
    'Sentence: "{sentence}"\nJSON:'
)
"""With an example the model answers in one flat object and stops; without, it nests objects until the token limit."""


def prompts(count: int, seed: int = 0) -> list[str]:
    """``count`` distinct user messages."""
    rng, seen = random.Random(seed), dict[str, None]()  # noqa: S311 - reproducible data, no secret
    while len(seen) < count:
        sentence = rng.choice(FORMS).format(
            name=rng.choice(NAMES), city=rng.choice(CITIES), number=rng.choice(NUMBERS), item=rng.choice(ITEMS)
        )
        seen.setdefault(TASK.format(sentence=sentence))
    return list(seen)


def aux_layers(layers: int) -> tuple[int, int, int]:
    """Indices into transformers' ``hidden_states`` (entry ``i`` is the input of layer ``i``) that SGLang captures
    for EAGLE-3 by default (sglang/srt/models/llama.py:936)."""
    return 2, layers // 2, layers - 3


def record(model: Any, tokens: Tensor, prompt_length: int) -> RequestTrace:
    """The trace of ``tokens`` [L] whose first ``prompt_length`` are the prompt."""
    with torch.inference_mode():
        out = model(tokens[None].long(), output_hidden_states=True)
    wanted = aux_layers(model.config.num_hidden_layers)
    length = tokens.shape[0]
    hidden = torch.cat([out.hidden_states[i][0, : length - 1] for i in wanted], dim=-1).to(torch.bfloat16)
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
        node_token=tokens[prompt_length : length - 1].to(torch.int32),
        node_parent=torch.full((rounds,), -1, dtype=torch.int16),
        node_accepted=torch.ones(rounds, dtype=torch.bool),
        top_ids=top.indices.to(torch.int32),
        top_logprobs=top.values.to(torch.float16),
        rest=(1 - top.values.exp().sum(-1)).clamp(0, 1).to(torch.float16),
    )


def generate(messages: Sequence[str]) -> Iterator[RequestTrace]:
    """Answer each message greedily (batched) and record it. Answers end with the end token or after
    :data:`MAX_NEW_TOKENS`."""
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
    """``count`` traces of JSON extraction with an example in the prompt."""
    return recorded("json", prompts(count))


def domain_traces(domain: Domain, count: int = 160) -> list[RequestTrace]:
    """``count`` traces of the requests that :mod:`tests.traffic` sends."""
    return recorded(domain, domain_prompts(domain, count))


def domain_prompts(domain: Domain, count: int) -> list[str]:
    """Their user messages."""
    return list(itertools.islice(traffic(domain, DOMAIN_SEED), count))


def recorded(name: str, messages: Sequence[str]) -> list[RequestTrace]:
    """Traces of ``messages``."""
    return cached(kept_as(name, messages, REVISION), lambda: generate(messages))


def kept_as(name: str, messages: Sequence[str], revision: int) -> str:
    """A name in the cache that changes with what is asked."""
    digest = hashlib.sha256("\0".join(messages).encode()).hexdigest()[:8]
    return f"{name}-{digest}-r{revision}-{len(messages)}"


def cached(name: str, make: Callable[[], Iterable[RequestTrace]]) -> list[RequestTrace]:
    """The traces kept as ``name``, made on one thread if there are none: about two minutes of one core for 160."""
    folder = cache_root() / "traces"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.safetensors"
    with _locked(folder / f".{path.name}.lock"):
        if not path.exists():
            threads = torch.get_num_threads()
            torch.set_num_threads(1)
            try:
                _write(path, encode(list(make())))
            finally:
                torch.set_num_threads(threads)
    return list(decode(path.read_bytes()))


def _write(path: Path, data: bytes) -> None:
    part = path.with_suffix(".part")
    part.write_bytes(data)
    part.rename(path)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    made = json_traces()
    print(json.dumps({"requests": len(made), "answer_tokens": sum(t.answer_tokens for t in made)}))
