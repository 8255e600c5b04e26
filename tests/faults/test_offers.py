"""Bad checkpoints, offered as the trainer offers good ones: none is ever swapped into a pod.

Runs after the matrix: what it damages in the store stays damaged.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.assets.trained_draft import nudge
from tests.faults.ledger import Entry
from tests.faults.stage import Stage
from tests.rig.verify import check_objects
from tests.traffic.prompts import Domain

pytestmark = pytest.mark.timeout(900)
WEIGHTS = "model.safetensors"


def _change(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


def _not_a_number(tensors: dict[str, torch.Tensor]) -> None:
    tensors["fc.weight"][0, 0] = float("nan")


def _other_shape(tensors: dict[str, torch.Tensor]) -> None:
    tensors["fc.weight"] = tensors["fc.weight"][:-1].clone()


def _other_map(tensors: dict[str, torch.Tensor]) -> None:
    """Two draft tokens mean each other's target token: SGLang would load it and report success."""
    ids = tensors["d2t"] + torch.arange(tensors["d2t"].shape[0])
    ids[[0, 1]] = ids[[1, 0]]
    tensors["d2t"] = ids - torch.arange(ids.shape[0])


def _slower(tensors: dict[str, torch.Tensor]) -> None:
    """A head that proposes what the target never says."""
    tensors["lm_head.weight"].neg_()


def _flipped(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


def _truncated(data: bytes) -> bytes:
    return data[: len(data) // 2]


DAMAGED = {"a flipped bit": _flipped, "truncated": _truncated}
MADE = {"not a number": _not_a_number, "other shapes": _other_shape, "other vocabulary map": _other_map}


def test_every_object_of_the_store_was_named_and_whole(stage: Stage) -> None:
    print(check_objects(stage.aurora, "faults"))


@pytest.mark.parametrize("what", [*MADE, "other lineage", *DAMAGED, "slower"])
def test_a_bad_checkpoint_is_rejected_and_never_served(what: str, stage: Stage, folder: Path) -> None:
    nudge(stage.specialists[Domain.EXTRACTION], folder, seed=100)
    if what in MADE:
        _change(folder, MADE[what])
    if what == "slower":
        _change(folder, _slower)
    served = {pod["checksum"] for pod in stage.status()["pods"]}
    before, began = stage.driver.summary(), time.monotonic()
    lineage = 2 if what == "other lineage" else None
    version = stage.offer(folder, lineage=lineage, damage=lambda checkpoint: _damage(stage, checkpoint, what))
    stage.wait(f"{what}: an end", lambda: stage.candidate(version) in ("Rejected", "Inconclusive", "Validated"))
    after, status = stage.driver.summary(), stage.status()
    message = status["candidate"]["message"]
    stage.entries.append(
        Entry(
            f"offered: {what}",
            "Validating",
            time.monotonic() - began,
            after.requests - before.requests,
            sum(after.broken.values()) - sum(before.broken.values()),
            after.failed - before.failed,
            f"Rejected: {message}"[:160],
        )
    )
    assert stage.candidate(version) == "Rejected", status["candidate"]
    assert version in status["rejected"]
    assert {pod["checksum"] for pod in status["pods"]} == served
    assert after.failed == before.failed
    assert after.broken == before.broken
    assert ("no pod would load it" in message) == (what != "slower"), message


def test_a_checkpoint_that_is_damaged_behind_the_gate_is_refused_by_the_pod(stage: Stage, folder: Path) -> None:
    stage.wait_active(0)
    served = {pod["checksum"] for pod in stage.status()["pods"]}
    version = stage.offer(nudge(stage.specialists[Domain.EXTRACTION], folder, seed=101))
    stage.wait("it passed", lambda: bool(list(stage.registry.evidences(version))))
    before, began = stage.driver.summary(), time.monotonic()
    _damage(stage, stage.registry.registration(version).checkpoint, "truncated")
    stage.wait("it is refused", lambda: version in stage.status()["rejected"])
    stage.wait_active(0)
    after, status = stage.driver.summary(), stage.status()
    message = status["rollout"]["message"]
    stage.entries.append(
        Entry(
            "damaged behind the gate",
            "Canary",
            time.monotonic() - began,
            after.requests - before.requests,
            sum(after.broken.values()) - sum(before.broken.values()),
            after.failed - before.failed,
            f"former draft; {message}"[:160],
        )
    )
    assert "the digest differs from its manifest" in message
    assert {pod["checksum"] for pod in status["pods"]} == served
    assert after.failed == before.failed
    assert after.broken == before.broken


def _damage(stage: Stage, checkpoint: str, what: str) -> None:
    """Change the object behind a manifest that stays as it is."""
    if what not in DAMAGED:
        return
    objects, key = stage.registry.objects, checkpoint + WEIGHTS
    objects.put(key, DAMAGED[what](objects.get(key)))
