"""``aurora-train``: open or create the lineage, resume, and train until SIGTERM.

Invariants: the process exits within ``TrainingPolicy.stop_seconds`` of SIGTERM. It saves its state if the store
answers. An error that ends the process is also the container's termination message, which the operator shows.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from pathlib import Path
from types import FrameType

import torch

from aurora_api.v1alpha1.serving import Device
from aurora_protocol.pod_settings import STATE_FOLDER, TrainerSettings
from aurora_runtime.errors import GpuMissing, Interrupted
from aurora_runtime.pod_registry import PodRegistry
from aurora_runtime.termination_message import errors_reported
from aurora_runtime.training.build import TrainerContext, TrainingConfig, build_trainer
from aurora_runtime.training.data.shard_deaths import ShardDeaths
from aurora_runtime.training.lineage import open_lineage, utc_now
from aurora_runtime.training.optim.ranks import Ranks, world_size
from aurora_runtime.training.optim.shared_session import run_follower
from aurora_runtime.training.progress import StatusWriter
from aurora_runtime.training.retry import Retrier
from aurora_runtime.training.settings import DEFAULT_POLICY
from aurora_runtime.training.target.target_model import load_target
from aurora_store import FencedObjectStore, StoreConfig

log = logging.getLogger(__name__)


def run(
    settings: TrainerSettings,
    registry: PodRegistry,
    retrier: Retrier,
    device: torch.device,
    ranks: Ranks | None,
    deaths: ShardDeaths | None = None,
) -> None:
    """Create the lineage if needed, then train. Returns when ``retrier`` is stopped."""

    announce = StatusWriter(registry).announce
    target = retrier.call("reading the target", lambda: load_target(settings.target), announce)
    retrier.call("opening the store", registry.objects.probe, announce)
    lineage = retrier.call(
        "opening the lineage", lambda: open_lineage(registry, target, settings.draft, utc_now), announce
    )
    config = TrainingConfig.of(settings, target.identity.hidden_size)
    context = TrainerContext(registry, target, lineage, retrier, deaths or ShardDeaths())
    build_trainer(config, context, device, ranks).run()


def own_device(requested: Device) -> torch.device:
    """The CPU, or this process's GPU. Raises :class:`GpuMissing`."""
    if requested is Device.CPU:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise GpuMissing
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


def stop_on_signals(retrier: Retrier, deaths: ShardDeaths, stop_seconds: float) -> None:
    """Stop ``retrier`` on SIGTERM and SIGINT, and end the process ``stop_seconds`` later if it still runs."""

    def stop(signum: int, frame: FrameType | None) -> None:
        log.info("stopping on signal %d", signum)
        retrier.stop()
        deaths.stop()
        deadline = threading.Timer(stop_seconds, os._exit, (1,))
        deadline.daemon = True
        deadline.start()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)


def main() -> None:
    """Entry point of the trainer's container."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    with errors_reported():
        _run_process()
    end_process()


def end_process() -> None:
    """End the process with exit code 0, without Python's and C++'s clean-up.

    Daemon threads may still run, and nobody waits for them. The clean-up would stop them inside C++ code, which can
    abort the process ("terminate called without an active exception"). Kubernetes would then count a failed exit.
    """
    logging.shutdown()
    os._exit(0)


def _run_process() -> None:
    """Lead the training, or follow the leader as one of several processes, until asked to stop."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
    settings = TrainerSettings.from_env()
    device = own_device(settings.device)
    ranks = Ranks(device) if world_size() > 1 else None
    if ranks and not ranks.leads:
        # The leader gets the same signal, and orders the other ranks to stop once it has saved.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        run_follower(ranks, device)
        return
    retrier, deaths = Retrier(), ShardDeaths(Path(STATE_FOLDER))
    stop_on_signals(retrier, deaths, DEFAULT_POLICY.stop_seconds)
    registry = PodRegistry(FencedObjectStore(StoreConfig.of(settings.store)))
    log.info("training for %s on %s, %d thread(s)", settings.target.model, device.type, torch.get_num_threads())
    try:
        run(settings, registry, retrier, device, ranks, deaths)
    except Interrupted as interrupted:
        log.info("%s", interrupted)
    if ranks:
        ranks.stop_followers()


if __name__ == "__main__":
    main()
