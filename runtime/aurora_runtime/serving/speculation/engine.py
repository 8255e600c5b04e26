"""What the hooks need of the engine that they run in: requirements, states, ranks, tokens to verify, and results.

The flags of :mod:`aurora_runtime.engine.speculation_flags` fulfil every requirement. A user's own flags may undo them,
and SGLang turns some off with only a warning. So the worker is asked, not the command line.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import torch
import torch.distributed
from torch import Tensor

from aurora_runtime.conversations import may_share
from aurora_runtime.engine.arms import Arm, Source
from aurora_runtime.engine.speculation_settings import SpeculationSettings
from aurora_runtime.pinned_copy import to_device
from aurora_runtime.request_wish import wish_of
from aurora_runtime.serving.chat_template import marker_of
from aurora_runtime.serving.speculation.lookup import LookupIndex, Proposal, RequestTexts
from aurora_runtime.serving.speculation.rounds import Decision, Round

SWITCH_LOGGER: Final = "sglang.srt.speculative.eagle_worker_v2"
SKIP_EXTEND_VARIABLE: Final = "SGLANG_SPEC_SKIP_ZERO_STEP_DRAFT_EXTEND"
"""SGLang's variable to leave out the draft in rounds of off, which would leave gaps in the KV of a draft in use."""
_SWITCH_NOTE: Final = "adaptive_spec.restore"
"""The source of SGLang's notes about switches (``EAGLEWorkerV2.apply_runtime_state``)."""


def graph_sizes(width: int, sizes: Sequence[int]) -> list[int]:
    """Those of SGLang's ``sizes`` of batches that have CUDA graphs for rounds of ``width`` tokens a request.

    A large batch seldom pays for wide rounds. It then runs them without a graph.
    """
    if width <= 2:
        return list(sizes)
    most = 64 if width <= 4 else 32 if width <= 8 else 16
    return [size for size in sizes if size <= most] or list(sizes[:1])


def obstacle_to_control(worker: Any, settings: SpeculationSettings) -> str | None:
    """Why rounds of this EAGLE-3 worker cannot be controlled; None when they can."""
    from sglang.srt.runtime_context import get_schedule

    if worker.adaptive_controller is None:
        return "SGLang has turned --speculative-adaptive off (its log says why)"
    missing = sorted({arm.steps for arm in settings.arms} - set(worker.adaptive_controller.candidate_steps))
    if missing:
        return f"--speculative-adaptive-config lacks the steps {', '.join(map(str, missing))}"
    if get_schedule().enable_mixed_chunk:
        return "--enable-mixed-chunk decodes tokens in prefill batches, which the draft would miss"
    return None


def start_copy(batch_result: Any) -> Callable[[], list[list[int]]]:
    """Queue the copies of a verified batch to the host. Returns what reads the committed tokens of each request there.

    Under overlap scheduling the scheduler launches round N+1 before it processes the results of round N, so its
    requests lack the tokens of round N. SGLang waits for the new lengths of round N before the launch, though. The copy
    was queued in front of them, so it has arrived as well, and nobody waits for it.
    """
    accept_lens: Tensor = batch_result.accept_lens
    tokens: Tensor = batch_result.next_token_ids.view(accept_lens.shape[0], -1)  # [B, n] the target's, after each node
    on_cpu = tokens.device.type == "cpu"
    copies = [
        tensor.clone()
        if on_cpu
        else torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
        for tensor in (tokens, accept_lens)
    ]
    arrived = None if on_cpu else torch.get_device_module(tokens.device).Event()
    if arrived is not None:
        arrived.record()

    def committed() -> list[list[int]]:
        if arrived is not None:
            arrived.synchronize()
        rows, counts = (tensor.tolist() for tensor in copies)
        return [row[:count] for row, count in zip(rows, counts, strict=True)]

    return committed


# tokens to verify ----------------------------------------------------------------------------------------------------
#
# A chain of the verify batch is just tokens: the target verifies them the same way whoever proposed them. So lookup's
# tokens either replace the draft's, or make a chain without the draft. Every token is a valid id. A row without a
# proposal repeats one, which the target then rejects or, if it happens to be right, accepts. A request that asks for no
# speculation always has such a row.

FILLER: Final = Proposal((0,))


def lookup_chains(current: Round) -> list[list[int]]:
    """The proposals of all requests, each filled up to the round's number of steps."""
    steps = current.decision.arm.steps
    chains = [list((proposal if proposal.tokens else FILLER).tokens[:steps]) for proposal in current.proposals]
    return [tokens + tokens[-1:] * (steps - len(tokens)) for tokens in chains]


def _with_fillers(proposed: Tensor, current: Round) -> Tensor:
    """The proposals ``[B, steps]`` with fillers for the requests that ask for no speculation."""
    without = [i for i, req in enumerate(current.reqs) if not wish_of(req).speculate]
    if not without:
        return proposed
    return proposed.index_fill(0, to_device(without, proposed.device), FILLER.tokens[0])


def lookup_verify_input(draft_worker: Any, batch: Any, current: Round) -> Any:
    """SGLang's verify input for chains of lookup's tokens, without the draft (eagle_worker_v2.py:660).

    The parents and scores of a chain are the same in every round, so SGLang keeps them (base_spec_worker.py:115).
    """
    from sglang.srt.speculative.eagle_worker_common import build_eagle_verify_input

    size = len(current.reqs)
    return build_eagle_verify_input(
        batch,
        batch.spec_info,
        draft_worker._topk1_parents_prealloc[:size],
        draft_worker._topk1_score_indices_prealloc[:size],
        to_device(lookup_chains(current), batch.device),
        None,
        target_worker=draft_worker.target_worker,
        topk=1,
        num_steps=draft_worker.speculative_num_steps,
        num_draft_tokens=draft_worker.speculative_num_draft_tokens,
        tree_mask_mode=draft_worker.tree_mask_mode,
        device=draft_worker.device,
    )


def with_lookup(draft_token: Tensor, current: Round) -> Tensor:
    """The verify round's tokens ``[B * n]`` with lookup's tokens in the rows of requests whose source is lookup."""
    tokens = draft_token.view(len(current.reqs), -1)
    drafted = tokens[:, 1:]
    proposed = _with_fillers(drafted, current)
    chosen = [i for i, source in enumerate(current.decision.sources) if source is Source.LOOKUP]
    if chosen:
        rows = to_device(chosen, tokens.device)
        looked_up = to_device(lookup_chains(current), tokens.device)[rows].to(tokens.dtype)
        proposed = proposed.index_copy(0, rows, looked_up)
    return draft_token if proposed is drafted else torch.cat((tokens[:, :1], proposed), 1).view(-1)


# ranks ---------------------------------------------------------------------------------------------------------------

_SOURCES: Final = tuple(Source)


def encode(decision: Decision) -> list[int]:
    """A decision for B requests as 5 + B numbers."""
    arm, flags = decision.arm, (decision.explores, decision.keeps_draft)
    numbers = [arm.steps, arm.drafts, *flags, decision.park_rounds]
    return [*map(int, numbers), *map(_SOURCES.index, decision.sources)]


def decode(numbers: Sequence[int]) -> Decision:
    """The decision that :func:`encode` encoded."""
    steps, drafts, explores, keeps_draft, park_rounds, *sources = numbers
    arm = Arm(steps, bool(drafts))
    return Decision(arm, tuple(_SOURCES[source] for source in sources), bool(explores), bool(keeps_draft), park_rounds)


class RankAgreement:
    """All tensor-parallel ranks run the same round: what rank 0 says, on every rank.

    The ranks measure different times, so each would soon decide differently, and ranks with different batch shapes
    block each other for ever. Lookup needs no broadcast: all ranks begin empty and commit the same tokens, and
    therefore propose the same ones. Every rank calls :meth:`agree` once per decided round and prefill, in this order.

    Args:
        group: the CPU process group of the tensor-parallel ranks; None for a single rank.
        decides: whether this is rank 0.
    """

    def __init__(self, group: Any | None, *, decides: bool) -> None:
        self._group = group
        self.decides = decides

    @classmethod
    def of_engine(cls) -> RankAgreement:
        """The agreement among SGLang's tensor-parallel ranks (sglang/srt/distributed/parallel_state.py:278)."""
        from sglang.srt.runtime_context import get_parallel

        group = get_parallel().tp_group
        if group.world_size == 1:
            return cls(None, decides=True)
        return cls(group.cpu_group, decides=group.rank_in_group == 0)

    @property
    def is_single(self) -> bool:
        return self._group is None

    def agree(self, numbers: Sequence[int], *, failed: bool = False) -> tuple[list[int], bool]:
        """The numbers of rank 0, and whether any rank failed. Other ranks pass as many numbers, which are ignored."""
        if self._group is None:
            return list(numbers), failed
        own = numbers if self.decides else [0] * len(numbers)
        values = torch.tensor([*own, int(failed)])
        torch.distributed.all_reduce(values, group=self._group)
        *agreed, failures = values.tolist()
        return agreed, failures > 0


class EngineControl:
    """What the hooks keep about the one worker of their process, once it has started.

    Attributes:
        overlaps: whether a round is launched before the scheduler has processed the one before.
        results: reads the last decided round's tokens.
    """

    def __init__(self, worker: Any, settings: SpeculationSettings) -> None:
        from sglang.srt.runtime_context import get_exec, get_schedule

        os.environ[SKIP_EXTEND_VARIABLE] = "0"
        logging.getLogger(SWITCH_LOGGER).addFilter(
            lambda record: not record.getMessage().startswith("Switch adaptive runtime state")  # several a second
        )
        self.worker = worker
        self.ranks = RankAgreement.of_engine()
        vocabulary = worker.target_worker.model_config.vocab_size
        traffic_key, marker = bytes.fromhex(settings.traffic_key), marker_of(worker)
        index = LookupIndex(
            settings.lookup,
            settings.lookup_tokens,
            vocabulary_size=vocabulary,
            shares=lambda prompt: may_share(prompt, marker, traffic_key),
        )
        self.texts = RequestTexts(index)
        self.overlaps = not get_schedule().disable_overlap_schedule
        self.results: Callable[[], list[list[int]]] | None = None
        self._graphs = get_exec().graph.cuda_graph_config.decode
        self._sizes = list(self._graphs.bs or ())

    @contextlib.contextmanager
    def graphs_for(self, width: int) -> Iterator[None]:
        """Let SGLang capture CUDA graphs for rounds of ``width`` tokens a request: the wider, the fewer batch sizes.

        SGLang's own choice by width does not reach the capture (base_cuda_graph_runner.py:77).
        """
        self._graphs.bs = graph_sizes(width, self._sizes)
        try:
            yield
        finally:
            self._graphs.bs = self._sizes

    def activate(self, steps: int) -> None:
        """Switch SGLang to its runtime state for ``steps``."""
        from sglang.srt.runtime_context import get_context

        self.worker.adaptive_controller._activate(steps)
        keep_last_note(getattr(get_context(), "_overrides_log", []))


def keep_last_note(notes: list[tuple[str, Any]]) -> None:
    """Remove SGLang's note of the switch before the last one from its ``notes`` of overridden settings.

    SGLang keeps a note of every switch for as long as the process runs (``RuntimeContext.override``): here a hundred
    megabytes a day. A later note overrides the same settings as the one before.
    """
    if len(notes) > 1 and notes[-1][0] == notes[-2][0] == _SWITCH_NOTE:
        del notes[-2]
