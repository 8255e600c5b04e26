"""The arms of the comparison and the servers behind them: no speculation, NGRAM, the drafts, and the controller.

Invariant: servers that look up in earlier answers share none, and all but the fresh pod's have answered the same
requests before. With ``same_history`` the servers without lookup have, too: an engine may become slower with its
requests.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.assets.bench_engine import engine_arguments, engine_device
from tests.assets.model import ensure_model
from tests.bench.served.engine_set import EngineSet
from tests.bench.served.live_training import Checkpoint
from tests.bench.served.messages import reserved, traffic
from tests.bench.served.paired_rounds import Measured, MeasurementPlan, measure
from tests.bench.served.round_shapes import describe_shape
from tests.bench.served.servers import DRAFT, OFF, Arm, Servers

from aurora_api.v1alpha1.draft import DraftSpec, LookupScope, Shape
from aurora_api.v1alpha1.target import DType
from aurora_runtime.cpu.launch_settings import DEFAULT_KV_TOKENS
from aurora_runtime.engine.server_process import EngineSpec
from aurora_runtime.engine.speculation_flags import Eagle3, Ngram
from aurora_runtime.engine.speculation_settings import controller_of

MAX_ANSWER_TOKENS: Final = 64
DEFAULT_SHAPES: Final = (DraftSpec(),)
FRESH, UNTRAINED, TRAINED = CONTROLLED = ("fresh", "untrained", "trained")
"""Pods with the controller that may be measured: one that answered nothing before, and one with each draft."""
SPARE_TOKENS: Final = 64
"""Room in the KV cache beside prompt and answer of each request of a batch, so that no server retracts one."""


@dataclass(frozen=True)
class Lineup:
    """The arms, and the servers that run them.

    Attributes:
        arms: all arms. The arm without speculation comes first.
        servers: how each server speculates, by the server's name. None: without speculation.
        ngrams: names of the NGRAM arms.
        trained: names of the arms with the last draft, which learned from the most traffic, one per shape.
        controlled: names of the arms whose rounds the controller decides, one per draft, and one for a fresh pod.
        fresh: the server of a pod that has answered nothing before. Empty: there is none.
        same_history: whether servers without lookup answer the traffic, too, before they are measured.
    """

    arms: tuple[Arm, ...]
    servers: dict[str, Eagle3 | Ngram | None]
    ngrams: tuple[str, ...]
    trained: tuple[str, ...]
    controlled: tuple[str, ...] = ()
    fresh: str = ""
    same_history: bool = False

    @property
    def off(self) -> str:
        """The name of the arm without speculation."""
        return self.arms[0].name

    @property
    def experienced(self) -> tuple[str, ...]:
        """The servers that answer the traffic before they are measured."""
        return tuple(
            name
            for name, method in self.servers.items()
            if name != self.fresh and (self.same_history or _looks_up(method))
        )


def _looks_up(method: Eagle3 | Ngram | None) -> bool:
    """Whether a server proposes tokens of earlier answers."""
    return isinstance(method, Ngram) or (isinstance(method, Eagle3) and method.controller is not None)


def lineup_of(
    checkpoints: Sequence[Checkpoint], ngram_tokens: Sequence[int], shapes: Sequence[DraftSpec] = DEFAULT_SHAPES
) -> Lineup:
    """The arms in the order of the first round: no speculation, NGRAM at each of ``ngram_tokens``, and the drafts.

    All drafts share one server in the first of ``shapes``. The last draft also gets one server per further shape.
    """
    arms, servers = [Arm("off", OFF)], dict[str, Eagle3 | Ngram | None]({OFF: None})
    for tokens in ngram_tokens:
        arms.append(Arm(f"NGRAM, {tokens} tokens", f"ngram-{tokens}"))
        servers[arms[-1].server] = Ngram(tokens)
    ngrams = tuple(arm.name for arm in arms[1:])
    first, last = checkpoints[0], checkpoints[-1]
    servers[DRAFT] = Eagle3(first.draft.folder, first.draft.version, shapes[0])
    arms += [Arm(one.name, DRAFT, one.draft) for one in checkpoints]
    for shape in shapes[1:]:
        arms.append(Arm(f"{last.name}, {describe_shape(shape)}", f"{DRAFT}-{len(servers)}", last.draft))
        servers[arms[-1].server] = Eagle3(last.draft.folder, last.draft.version, shape)
    trained = tuple(arm.name for arm in arms if arm.draft == last.draft)
    return Lineup(tuple(arms), servers, ngrams, trained)


def with_controller(
    lineup: Lineup,
    checkpoints: Sequence[Checkpoint],
    spec: DraftSpec,
    folder: Path,
    pods: Collection[str] = CONTROLLED,
    scopes: Sequence[LookupScope] = (LookupScope.SPECULATOR,),
) -> Lineup:
    """``lineup`` and the controller with each draft, and with the untrained draft in a pod that is fresh.

    Args:
        folder: for what the servers write beside their logs.
        pods: which of :data:`CONTROLLED` to measure.
        scopes: where the controller's lookup may look, each once. The fresh pod is measured with the first of them,
            and the other pods with each.
    """
    untrained, *trained = checkpoints
    fresh = f"controller, fresh pod{_scope_suffix(scopes[0], scopes)}"
    drafts = [(fresh, untrained.draft, scopes[0])] if FRESH in pods else []
    named = ([untrained] if UNTRAINED in pods else []) + (trained if TRAINED in pods else [])
    drafts += [
        (f"controller, {one.name}{_scope_suffix(scope, scopes)}", one.draft, scope)
        for one, scope in itertools.product(named, scopes)
    ]
    added, servers = list[Arm](), dict[str, Eagle3 | Ngram | None]()
    for number, (name, draft, scope) in enumerate(drafts):
        adaptive = spec.model_copy(update={"shape": Shape.ADAPTIVE, "lookup": scope})
        added.append(Arm(name, f"controlled-{number}", draft))
        state = folder / added[-1].server
        state.mkdir()
        servers[added[-1].server] = Eagle3(
            draft.folder, draft.version, adaptive, controller_of(adaptive, state, "bench")
        )
    return dataclasses.replace(
        lineup,
        arms=(*lineup.arms, *added),
        servers=lineup.servers | servers,
        controlled=tuple(arm.name for arm in added),
        fresh=added[0].server if FRESH in pods else "",
    )


def _scope_suffix(scope: LookupScope, scopes: Sequence[LookupScope]) -> str:
    """The end of an arm's name that distinguishes the arms of one draft when there are several scopes."""
    return f", lookup {scope}" if len(scopes) > 1 else ""


def chat_texts(tokenizer: Any, messages: Sequence[str]) -> list[str]:
    """Each message as the text of a chat request."""
    return [
        tokenizer.apply_chat_template([{"role": "user", "content": m}], tokenize=False, add_generation_prompt=True)
        for m in messages
    ]


async def measure_lineup(
    domain: str,
    lineup: Lineup,
    plan: MeasurementPlan,
    learned_from: Sequence[str],
    folder: Path,
) -> Measured:
    """Start the servers, measure, and stop the servers.

    Args:
        learned_from: the messages that the drafts learned from. :attr:`Lineup.experienced` answer these messages before
            they are measured.
        folder: for the servers' logs.
    """
    from transformers import AutoTokenizer

    model = ensure_model()
    tokenizer = AutoTokenizer.from_pretrained(model)
    fresh_prompts, learned_prompts = (
        [tokenizer(text)["input_ids"] for text in chat_texts(tokenizer, messages)]
        for messages in (reserved(domain)[: plan.prompts_needed], learned_from)
    )
    # The servers have answered the first messages of the traffic.
    unseen = traffic(domain)[len(learned_from) :] or traffic(domain)
    warmup = chat_texts(tokenizer, unseen[: plan.warmups_needed])
    longest = max(map(len, fresh_prompts + learned_prompts)) + MAX_ANSWER_TOKENS + SPARE_TOKENS
    kv_tokens = max(DEFAULT_KV_TOKENS, longest * max(plan.concurrencies))
    spec = EngineSpec(str(model), engine_device(), kv_tokens, DType.BFLOAT16.value, extra_args=engine_arguments())
    async with Servers(EngineSet(spec, folder), lineup.servers, warmup, MAX_ANSWER_TOKENS) as servers:
        await servers.learn_checksums(lineup.arms)
        if lineup.experienced:
            began = time.monotonic()
            await servers.feed(lineup.experienced, learned_prompts)
            seconds = time.monotonic() - began
            names = ", ".join(lineup.experienced)
            print(f"{domain}: {names} answered {len(learned_from)} requests in {seconds:.0f} s", flush=True)
        return await measure(servers, plan, fresh_prompts, tokenizer.decode)
