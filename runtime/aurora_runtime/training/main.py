"""``aurora-train``: open or create the lineage, resume, train until SIGTERM.

Invariant: after SIGTERM the process is gone within :data:`STOP_S`, saved if the store answers.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from types import FrameType
from typing import Final

import torch

from aurora_api.v1alpha1.training import MAX_UNROLL_STEPS
from aurora_protocol.draft_records import INITIAL_VERSION, Lineage
from aurora_protocol.pod_settings import TrainerSettings
from aurora_protocol.training_records import TrainerPhase
from aurora_runtime.errors import Interrupted
from aurora_runtime.training import lineage as lineages
from aurora_runtime.training.candidates import Candidates
from aurora_runtime.training.data.held_out import HeldOutSet
from aurora_runtime.training.data.replay import ReplayBuffer
from aurora_runtime.training.data.replay_budget import ReplayBudget
from aurora_runtime.training.data.shards import ShardReader
from aurora_runtime.training.loop import Trainer
from aurora_runtime.training.model.target import TargetModel, load_target
from aurora_runtime.training.optim.ranks import Ranks, SharedSession, follow, processes
from aurora_runtime.training.optim.recipe import Recipe
from aurora_runtime.training.optim.session import Session
from aurora_runtime.training.progress import IDLE_INTERVAL_S, Progress
from aurora_runtime.training.retry import Retrier
from aurora_runtime.training.state import replay_restore, trainer_state
from aurora_runtime.training.state.orphan_cleanup import OrphanCleanup
from aurora_runtime.training.state.retention import Limits, Retention
from aurora_runtime.training.state.shard_ledger import ShardLedger
from aurora_runtime.training.vocabulary_coverage import VocabularyCoverage
from aurora_store import ObjectStore, Registry, StoreConfig

STOP_S: Final = 9.0
REPLAY_BYTES: Final = 1 << 30
HELD_OUT_REQUESTS: Final = 48
log = logging.getLogger(__name__)


def recipe_of(settings: TrainerSettings) -> Recipe:
    """How to learn, from the custom resource."""
    training = settings.training
    return Recipe(
        learning_rate=float(training.learning_rate),
        unroll_steps=training.unroll_steps or min(settings.draft.steps, MAX_UNROLL_STEPS),
        replay=training.replay,
        passes=training.passes,
    )


def limits_of(settings: TrainerSettings) -> Limits:
    """What of the traces is kept, from the custom resource."""
    return Limits.of(settings.training.trace_storage_bytes, REPLAY_BYTES)


def build(
    settings: TrainerSettings,
    registry: Registry,
    target: TargetModel,
    lineage: Lineage,
    patience: Retrier,
    device: torch.device,
    ranks: Ranks | None = None,
) -> Trainer:
    """A trainer that continues from the stored state, or from the last version when there is none."""
    number = lineage.number
    state = patience.call("reading the trainer's state", lambda: trainer_state.read(registry, number))
    newest = patience.call("reading the registry", registry.last_version) or INITIAL_VERSION
    last = patience.call("reading the registry", lambda: registry.registration(newest))
    # A state brings its weights and its map, unless it is from before maps could change: then the map is the one of
    # the version that was the last when it was saved.
    begun = newest if state is None or state.record.last_registered is None else state.record.last_registered
    draft, vocabulary = patience.call("fetching a version", lambda: lineages.fetch(registry, begun, target))
    held = patience.call("fetching the last version", lambda: lineages.fetch(registry, newest, target))
    recipe = recipe_of(settings)
    session = (
        SharedSession(draft, vocabulary, recipe, device, ranks) if ranks else Session(draft, vocabulary, recipe, device)
    )
    ledger = ShardLedger(registry, number, patience, state.record if state else None)
    width = len(lineage.aux_layers) * target.identity.hidden_size
    reader = ShardReader(registry, target.identity.vocab_size, width, patience, prompt_weight=recipe.prompt_weight)
    memory, held_out = ReplayBuffer(REPLAY_BYTES), HeldOutSet(HELD_OUT_REQUESTS)
    tally, owed = (
        VocabularyCoverage(target.identity.vocab_size, target.special_tokens),
        ReplayBudget(replay=recipe.replay, passes=recipe.passes),
    )
    if state is not None:
        replay_restore.refill(state.tensors, state.record.consumed, reader, memory, held_out)
        session.restore(state.tensors)
        tally.restore(state.tensors)
        owed.restore(state.tensors, memory.slots)
        log.info("resumed at step %d, %d positions", session.steps, state.record.trained_tokens)
    return Trainer(
        registry=registry,
        ledger=ledger,
        reader=reader,
        memory=memory,
        held_out=held_out,
        tally=tally,
        owed=owed,
        head=target.head,
        session=session,
        candidates=Candidates(registry, number, settings.training, settings.draft.steps, last, held),
        progress=Progress(registry),
        janitor=patience.call("looking for orphans", lambda: OrphanCleanup(registry)),
        retention=Retention(registry, ledger, limits_of(settings)),
        patience=patience,
        epoch=patience.call("reading the trainer's state", registry.last_trainer_state_epoch),
        trained_tokens=state.record.trained_tokens if state else last.trained_tokens,
    )


def run(
    settings: TrainerSettings, registry: Registry, patience: Retrier, device: torch.device, ranks: Ranks | None
) -> None:
    """Day 0 if needed, then training or, when suspended, waiting; returns when ``patience`` is stopped."""
    target = patience.call(
        "reading the target",
        lambda: load_target(settings.target),
        failed=lambda why: Progress(registry).announce(TrainerPhase.STARTING, message=why),
    )
    patience.call("opening the store", registry.objects.probe)
    lineage = patience.call(
        "opening the lineage", lambda: lineages.open_lineage(registry, target, settings.draft, lineages.utc_now)
    )
    if settings.training.suspended:
        wait_suspended(settings, registry, lineage, patience)
        return
    build(settings, registry, target, lineage, patience, device, ranks).run()


def wait_suspended(settings: TrainerSettings, registry: Registry, lineage: Lineage, patience: Retrier) -> None:
    """Say that training is suspended, and what was reached, until asked to stop. Traces still come, and are bounded."""
    progress = Progress(registry)
    state = patience.call("reading the trainer's state", lambda: trainer_state.record_of(registry, lineage.number))
    ledger = ShardLedger(registry, lineage.number, patience, state)
    retention = Retention(registry, ledger, limits_of(settings), suspended=True)
    while not patience.stopping:
        next_look = time.monotonic() + IDLE_INTERVAL_S
        progress.announce(TrainerPhase.SUSPENDED, lineage=lineage.number)
        retention.pending()
        deleted = 1
        while deleted and time.monotonic() < next_look:
            deleted = retention.tick(lambda: patience.stopping)
        patience.sleep(next_look - time.monotonic())


def own_device() -> torch.device:
    """This process's GPU, else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


def main() -> None:
    """Entry point of the trainer's container."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
    settings = TrainerSettings.from_env()
    device = own_device()
    ranks = Ranks(device) if processes() > 1 else None
    if ranks and not ranks.leads:
        # When to stop is the leader's to say, which is told to stop at the same time.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        follow(ranks, device)
        return
    patience = Retrier()

    def stop(signum: int, frame: FrameType | None) -> None:
        log.info("stopping on signal %d", signum)
        patience.stop()
        deadline = threading.Timer(STOP_S, os._exit, (1,))
        deadline.daemon = True
        deadline.start()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    registry = Registry(ObjectStore(StoreConfig.of(settings.store)))
    log.info("training for %s on %s, %d thread(s)", settings.target.model, device.type, torch.get_num_threads())
    try:
        run(settings, registry, patience, device, ranks)
    except Interrupted as interrupted:
        log.info("%s", interrupted)
    if ranks:
        ranks.dismiss()


if __name__ == "__main__":
    main()
