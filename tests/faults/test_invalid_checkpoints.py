"""Invalid checkpoints are offered in the way the trainer offers valid ones. None is ever swapped into a pod.

This module runs after the fault matrix, because the objects that it damages in the store stay damaged.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.assets.trained_draft import write_perturbed_copy
from tests.faults.fault_rig import FaultRig
from tests.faults.results_table import ClientCounts, FaultResult
from tests.rig.store_inspection import check_objects
from tests.traffic.prompts import Domain
from tests.traffic.report import Summary

pytestmark = [pytest.mark.timeout(3600), pytest.mark.usefixtures("reject_newest_version_afterwards")]
WEIGHTS = "model.safetensors"
MAX_DRAFT_BYTES = 1 << 30


def _change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


def _insert_nan(tensors: dict[str, torch.Tensor]) -> None:
    tensors["fc.weight"][0, 0] = float("nan")


def _change_shape(tensors: dict[str, torch.Tensor]) -> None:
    tensors["fc.weight"] = tensors["fc.weight"][:-1].clone()


def _swap_two_map_entries(tensors: dict[str, torch.Tensor]) -> None:
    """Give two draft tokens each other's target token. SGLang would load this map and report success."""
    ids = tensors["d2t"] + torch.arange(tensors["d2t"].shape[0])
    ids[[0, 1]] = ids[[1, 0]]
    tensors["d2t"] = ids - torch.arange(ids.shape[0])


def _shift_map(tensors: dict[str, torch.Tensor]) -> None:
    """Give each draft token the target token of the next one: a valid map, but of another head."""
    ids = tensors["d2t"] + torch.arange(tensors["d2t"].shape[0])
    outside = (~tensors["t2d"]).nonzero()[-1]
    ids = torch.cat([ids[1:], outside]).sort().values
    tensors["d2t"] = ids - torch.arange(ids.shape[0])
    tensors["t2d"].zero_()[ids] = True


def _negate_head(tensors: dict[str, torch.Tensor]) -> None:
    """Make the head propose tokens that the target never chooses, so that the draft only costs time."""
    tensors["lm_head.weight"].neg_()


def _flip_last_bit(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


def _truncate(data: bytes) -> bytes:
    return data[: len(data) // 2]


INVALID_TENSORS = {
    "NaN weight": _insert_nan,
    "other shapes": _change_shape,
    "impossible vocabulary map": _swap_two_map_entries,
}
DAMAGED_OBJECTS = {"flipped bit": _flip_last_bit, "truncated": _truncate}
SLOWER_DRAFTS = {"wrong vocabulary map": _shift_map, "negated head": _negate_head}


def _damage_object(rig: FaultRig, checkpoint: str, damage: Callable[[bytes], bytes]) -> None:
    """Change the weights in the store, but not the manifest that describes them."""
    objects, key = rig.registry.objects, checkpoint + WEIGHTS
    objects.put(key, damage(objects.get(key, max_bytes=MAX_DRAFT_BYTES)))


def _record(rig: FaultRig, fault: str, state: str, before: Summary, started: float, outcome: str) -> None:
    """Record a result. Clients must not have noticed anything."""
    clients = ClientCounts.between(before, rig.driver.summary())
    result = FaultResult(fault, state, time.monotonic() - started, clients, outcome[:160])
    rig.results.append(result)
    print(result, flush=True)
    assert (clients.retries, clients.failed) == (0, 0)


def test_every_object_of_the_store_is_valid_after_the_fault_matrix(rig: FaultRig) -> None:
    print(check_objects(rig.aurora, "faults"))


@pytest.mark.parametrize("defect", [*INVALID_TENSORS, "other lineage", *DAMAGED_OBJECTS])
def test_a_checkpoint_that_no_pod_would_load_is_rejected_without_a_measurement(
    defect: str, rig: FaultRig, draft_folder: Path
) -> None:
    write_perturbed_copy(rig.specialists[Domain.EXTRACTION], draft_folder, seed=100)
    if defect in INVALID_TENSORS:
        _change_tensors(draft_folder, INVALID_TENSORS[defect])
    damage = DAMAGED_OBJECTS.get(defect, bytes)
    lineage = 2 if defect == "other lineage" else None
    message = _offer_and_expect_rejection(
        rig, defect, lambda: rig.offer(draft_folder, lineage, lambda key: _damage_object(rig, key, damage))
    )
    assert "no pod would load the draft" in message


def test_a_checkpoint_that_is_damaged_after_the_gate_is_refused_by_the_pod(rig: FaultRig, draft_folder: Path) -> None:
    rig.wait_until_serving(0)
    served = {pod["checksum"] for pod in rig.status()["pods"]}
    rig.patch({"rollout": {"paused": True}})  # else a pod may load the draft before it is damaged
    try:
        version = rig.offer(write_perturbed_copy(rig.specialists[Domain.EXTRACTION], draft_folder, seed=103))
        rig.wait_until(f"version {version} is measured", lambda: rig.registry.evidence(version) is not None)
        before, started = rig.driver.summary(), time.monotonic()
        _damage_object(rig, rig.registry.registration(version).checkpoint, _truncate)
    finally:
        rig.patch({"rollout": {"paused": None}})
    rig.wait_until(f"version {version} is rejected", lambda: version in rig.status()["rejected"])
    rig.wait_until_serving(0)
    status = rig.status()
    message = status["rollout"]["message"]
    assert "the digest differs from its manifest" in message
    assert {pod["checksum"] for pod in status["pods"]} == served
    _record(rig, "damaged after the gate", "Canary", before, started, f"previous draft; {message}")


@pytest.fixture(scope="module")
def useful_active_draft(rig: FaultRig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Make a trained draft the active version, because no candidate is slower than the untrained draft."""
    rig.wait_until_serving(0)
    folder = tmp_path_factory.mktemp("useful") / "draft"
    version = rig.offer(write_perturbed_copy(rig.specialists[Domain.EXTRACTION], folder, seed=101))
    try:
        rig.wait_until(f"version {version} is measured", lambda: rig.registry.evidence(version) is not None)
        rig.wait_until_serving(version)
        yield
    finally:
        rig.annotate("abort", version)
    rig.wait_until_serving(0)


@pytest.mark.usefixtures("useful_active_draft")
@pytest.mark.parametrize("defect", SLOWER_DRAFTS)
def test_a_slower_draft_does_not_pass_its_measurement_and_is_never_served(
    defect: str, rig: FaultRig, draft_folder: Path
) -> None:
    """Where the measurement is noisy, it may end undecided: a pass is out of reach, so it goes no further."""
    write_perturbed_copy(rig.specialists[Domain.EXTRACTION], draft_folder, seed=102)
    _change_tensors(draft_folder, SLOWER_DRAFTS[defect])
    phase, message = _offer(rig, defect, lambda: rig.offer(draft_folder))
    assert phase in ("Rejected", "Inconclusive"), message
    assert "no pod would load the draft" not in message


def _offer_and_expect_rejection(rig: FaultRig, defect: str, offer: Callable[[], int]) -> str:
    """Offer a draft, check that it is rejected and that no pod serves it, and return the reason."""
    phase, message = _offer(rig, defect, offer)
    status = rig.status()
    assert phase == "Rejected", message
    assert status["candidate"]["version"] in status["rejected"]
    return message


def _offer(rig: FaultRig, defect: str, offer: Callable[[], int]) -> tuple[str, str]:
    """Offer a draft, and check that the pods serve what they served before. Returns the verdict and its reason."""
    served = {pod["checksum"] for pod in rig.status()["pods"]}
    before, started = rig.driver.summary(), time.monotonic()
    version = offer()
    rig.wait_until(
        f"a verdict on version {version} ({defect})",
        lambda: rig.candidate_phase(version) in ("Rejected", "Inconclusive", "Validated"),
    )
    status = rig.status()
    phase, message = rig.candidate_phase(version), str(status["candidate"]["message"])
    assert {pod["checksum"] for pod in status["pods"]} == served
    _record(rig, f"offered: {defect}", "Validating", before, started, f"{phase}: {message}")
    return phase, message
