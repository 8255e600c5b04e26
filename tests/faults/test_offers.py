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


UNLOADABLE = {"not a number": _not_a_number, "other shapes": _other_shape, "impossible vocabulary map": _impossible_map}
SLOW = {"wrong vocabulary map": _wrong_map, "slower": _slower}


def test_every_object_of_the_store_was_named_and_whole(stage: Stage) -> None:
    print(check_objects(stage.aurora, "faults"))


@pytest.mark.parametrize("what", [*UNLOADABLE, "other lineage", "a flipped bit", "truncated", *SLOW])
def test_a_bad_checkpoint_is_rejected_and_never_served(what: str, stage: Stage, folder: Path) -> None:
    nudge(stage.specialists[Domain.EXTRACTION], folder, seed=100)
    if change := (UNLOADABLE | SLOW).get(what):
        _change(folder, change)
    served = {pod["checksum"] for pod in stage.status()["pods"]}
    before, began = stage.driver.summary(), time.monotonic()
    version = stage.offer(folder, lineage=2 if what == "other lineage" else None)
    if what in ("a flipped bit", "truncated"):
        _damage(stage, version, flip=what == "a flipped bit")
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
    assert ("no pod would load it" in message) == (what not in SLOW), message


def _damage(stage: Stage, version: int, *, flip: bool) -> None:
    """Change the object behind a manifest that stays as it is."""
    store = stage.registry
    key = store.registration(version).checkpoint + WEIGHTS
    data = bytearray(store.objects.get(key))
    if flip:
        data[-1] ^= 1
    store.objects.put(key, bytes(data if flip else data[: len(data) // 2]))
