"""Bad checkpoints, offered as the trainer offers good ones: none is ever swapped into a pod.

Runs after the matrix: what it damages in the store stays damaged.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.assets.trained_draft import nudge
from tests.faults.fault_rig import Stage
from tests.faults.results_table import Entry
from tests.rig.store_inspection import check_objects
from tests.traffic.prompts import Domain
from tests.traffic.report import Summary

pytestmark = pytest.mark.timeout(3600)
WEIGHTS = "model.safetensors"


def _change(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


def _not_a_number(tensors: dict[str, torch.Tensor]) -> None:
    tensors["fc.weight"][0, 0] = float("nan")


def _other_shape(tensors: dict[str, torch.Tensor]) -> None:
    tensors["fc.weight"] = tensors["fc.weight"][:-1].clone()


def _impossible_map(tensors: dict[str, torch.Tensor]) -> None:
    """Two draft tokens mean each other's target token: SGLang would load it and report success."""
    ids = tensors["d2t"] + torch.arange(tensors["d2t"].shape[0])
    ids[[0, 1]] = ids[[1, 0]]
    tensors["d2t"] = ids - torch.arange(ids.shape[0])


def _wrong_map(tensors: dict[str, torch.Tensor]) -> None:
    """A map that is one, but not this head's: every draft token means what the one after it should."""
    ids = tensors["d2t"] + torch.arange(tensors["d2t"].shape[0])
    outside = (~tensors["t2d"]).nonzero()[-1]
    ids = torch.cat([ids[1:], outside]).sort().values
    tensors["d2t"] = ids - torch.arange(ids.shape[0])
    tensors["t2d"].zero_()[ids] = True


def _slower(tensors: dict[str, torch.Tensor]) -> None:
    """A head that proposes what the target never says."""
    tensors["lm_head.weight"].neg_()


def _flipped(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


def _truncated(data: bytes) -> bytes:
    return data[: len(data) // 2]


MADE = {"not a number": _not_a_number, "other shapes": _other_shape, "impossible vocabulary map": _impossible_map}
DAMAGED = {"a flipped bit": _flipped, "truncated": _truncated}
SLOW = {"wrong vocabulary map": _wrong_map, "slower": _slower}


def _damage(stage: Stage, checkpoint: str, damage: Callable[[bytes], bytes]) -> None:
    """Change the object behind a manifest that stays as it is."""
    objects, key = stage.registry.objects, checkpoint + WEIGHTS
    objects.put(key, damage(objects.get(key)))


def _note(stage: Stage, fault: str, state: str, before: Summary, began: float, end: str) -> None:
    """What it took and cost; clients saw nothing of it."""
    after = stage.driver.summary()
    entry = Entry(
        fault,
        state,
        time.monotonic() - began,
        after.requests - before.requests,
        sum(after.broken.values()) - sum(before.broken.values()),
        after.failed - before.failed,
        end[:160],
    )
    stage.entries.append(entry)
    print(entry, flush=True)
    assert (entry.broken, entry.failed) == (0, 0)


def test_every_object_of_the_store_was_named_and_whole(stage: Stage) -> None:
    print(check_objects(stage.aurora, "faults"))


@pytest.mark.parametrize("what", [*MADE, "other lineage", *DAMAGED])
def test_a_checkpoint_that_no_pod_would_load_is_rejected_unmeasured(what: str, stage: Stage, folder: Path) -> None:
    nudge(stage.specialists[Domain.EXTRACTION], folder, seed=100)
    if what in MADE:
        _change(folder, MADE[what])
    damage = DAMAGED.get(what, bytes)
    lineage = 2 if what == "other lineage" else None
    message = _rejected(stage, what, lambda: stage.offer(folder, lineage, lambda key: _damage(stage, key, damage)))
    assert "no pod would load it" in message


def test_a_checkpoint_that_is_damaged_behind_the_gate_is_refused_by_the_pod(stage: Stage, folder: Path) -> None:
    stage.wait_active(0)
    served = {pod["checksum"] for pod in stage.status()["pods"]}
    version = stage.offer(nudge(stage.specialists[Domain.EXTRACTION], folder, seed=103))
    stage.wait("it passed", lambda: bool(list(stage.registry.evidences(version))))
    before, began = stage.driver.summary(), time.monotonic()
    _damage(stage, stage.registry.registration(version).checkpoint, _truncated)
    stage.wait("it is refused", lambda: version in stage.status()["rejected"])
    stage.wait_active(0)
    status = stage.status()
    message = status["rollout"]["message"]
    assert "the digest differs from its manifest" in message
    assert {pod["checksum"] for pod in status["pods"]} == served
    _note(stage, "damaged behind the gate", "Canary", before, began, f"former draft; {message}")


@pytest.fixture(scope="module")
def earned(stage: Stage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Pods serve a draft that is worth something: the untrained one is as slow as any."""
    stage.wait_active(0)
    folder = tmp_path_factory.mktemp("earned") / "draft"
    version = stage.offer(nudge(stage.specialists[Domain.EXTRACTION], folder, seed=101))
    try:
        stage.wait("it passed", lambda: bool(list(stage.registry.evidences(version))))
        stage.wait_active(version)
        yield
    finally:
        stage.annotate("abort", version)
    stage.wait_active(0)


@pytest.mark.usefixtures("earned")
@pytest.mark.parametrize("what", SLOW)
def test_a_slower_draft_is_rejected_by_measurement_and_never_served(what: str, stage: Stage, folder: Path) -> None:
    nudge(stage.specialists[Domain.EXTRACTION], folder, seed=102)
    _change(folder, SLOW[what])
    message = _rejected(stage, what, lambda: stage.offer(folder))
    assert "no pod would load it" not in message


def _rejected(stage: Stage, what: str, offer: Callable[[], int]) -> str:
    """Offer a draft and see it rejected and served by nobody; returns why."""
    served = {pod["checksum"] for pod in stage.status()["pods"]}
    before, began = stage.driver.summary(), time.monotonic()
    version = offer()
    stage.wait(f"{what}: an end", lambda: stage.candidate(version) in ("Rejected", "Inconclusive", "Validated"))
    status = stage.status()
    message = str(status["candidate"]["message"])
    assert stage.candidate(version) == "Rejected", status["candidate"]
    assert version in status["rejected"]
    assert {pod["checksum"] for pod in status["pods"]} == served
    _note(stage, f"offered: {what}", "Validating", before, began, f"Rejected: {message}")
    return message
