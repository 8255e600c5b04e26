"""Somebody who can write to the bucket. A draft serves only after the gate measured it, and nothing runs as code."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from aurora_protocol.draft_records import Channel, ChannelReason
from aurora_protocol.record import MAX_NUMBER
from aurora_store.keys import Keys
from tests.assets.trained_draft import write_perturbed_copy
from tests.attacks.attack_rig import AttackRig
from tests.unit.operator.worlds import evidence, samples

pytestmark = pytest.mark.timeout(3600)
WEIGHTS, CONFIG = "model.safetensors", "config.json"
ENDLESS_BYTES = 256 << 20
OPERATOR_GROWTH_BYTES = 48 << 20
"""What the operator may grow by: far less than the endless record, and more than a look's own buffers."""
SECONDS_OF_LOOKS = 90.0
"""The operator looks at the whole store at least once in this time."""

Files = list[dict[str, Any]]


def _file(files: Files, name: str) -> dict[str, Any]:
    return next(file for file in files if file["name"] == name)


MANIFESTS: dict[str, Callable[[Files], object]] = {
    "a path out of the folder": lambda files: files[0].update(name="../../json.py"),
    "a third file": lambda files: files.append(files[0] | {"name": "modeling_evil.py"}),
    "a file of a terabyte": lambda files: _file(files, WEIGHTS).update(size=1 << 40),
}


@pytest.mark.parametrize("attack", MANIFESTS)
def test_a_manifest_that_is_not_a_drafts_starts_no_measurement(rig: AttackRig, draft_folder: Path, attack: str) -> None:
    write_perturbed_copy(rig.specialist, draft_folder, seed=100)
    change = MANIFESTS[attack]
    version = rig.offer(
        draft_folder, damage=lambda key: rig.change_record(f"{key}manifest.json", lambda m: change(m["files"]))
    )
    _expect_rejection(rig, version)


def test_weights_that_the_registration_does_not_name_are_not_measured(rig: AttackRig, draft_folder: Path) -> None:
    """Manifest and weights agree with each other, and the registration names others."""
    write_perturbed_copy(rig.specialist, draft_folder, seed=101)
    other = (write_perturbed_copy(rig.specialist, draft_folder.with_name("other"), seed=102) / WEIGHTS).read_bytes()

    def exchange(checkpoint: str) -> None:
        rig.registry.objects.put(checkpoint + WEIGHTS, other)
        named = {"sha256": hashlib.sha256(other).hexdigest(), "size": len(other)}
        rig.change_record(f"{checkpoint}manifest.json", lambda m: _file(m["files"], WEIGHTS).update(named))

    _expect_rejection(rig, rig.offer(draft_folder, damage=exchange))


@pytest.mark.parametrize("change", ["not JSON", "another architecture", "more layers"])
def test_a_config_that_is_not_the_lineages_is_not_measured(rig: AttackRig, draft_folder: Path, change: str) -> None:
    write_perturbed_copy(rig.specialist, draft_folder, seed=103)
    config = json.loads((draft_folder / CONFIG).read_text())
    texts = {
        "not JSON": "{",
        "another architecture": json.dumps(config | {"architectures": ["Evil"], "auto_map": {"AutoModel": "evil.E"}}),
        "more layers": json.dumps(config | {"num_hidden_layers": 60}),
    }
    (draft_folder / CONFIG).write_text(texts[change])
    _expect_rejection(rig, rig.offer(draft_folder))


def test_evidence_that_nobody_measured_promotes_nothing(rig: AttackRig, draft_folder: Path) -> None:
    """Once without samples, once with samples that look measured. The draft's head proposes only wrong tokens."""
    write_perturbed_copy(rig.specialist, draft_folder, seed=104)
    tensors = load_file(draft_folder / WEIGHTS)
    tensors["lm_head.weight"] = torch.neg(tensors["lm_head.weight"])
    save_file(tensors, draft_folder / WEIGHTS)
    version, store = rig.offer(draft_folder), rig.registry
    active = rig.status()["active"]["version"]
    candidate = store.registration(version)
    about = {
        "candidate_digest": candidate.digest,
        "active_digest": store.registration(active).digest,
        "lineage": candidate.lineage,
    }
    for attempt, invented in enumerate([(), samples(rounds=8, concurrencies=(1,))], start=50):
        made = evidence(version, active=active, attempt=attempt)
        store.put_evidence(made.model_copy(update=about | {"samples": invented}))
    deadline = time.monotonic() + SECONDS_OF_LOOKS
    while time.monotonic() < deadline:
        status = rig.status()
        assert status["active"]["version"] == active
        assert status["rollout"].get("version") != version, "not even a canary is swapped"
        time.sleep(1)
    rig.annotate("abort", version)
    rig.wait_until("the draft is rejected", lambda: version in rig.status()["rejected"])


@pytest.mark.parametrize("number", [MAX_NUMBER, None], ids=["out of sequence", "the next record"])
def test_a_channel_record_of_somebody_else_activates_nothing(
    rig: AttackRig, draft_folder: Path, number: int | None
) -> None:
    version = rig.offer(write_perturbed_copy(rig.specialist, draft_folder, seed=105))
    rig.annotate("abort", version)
    rig.wait_until("the draft is rejected", lambda: version in rig.status()["rejected"])
    found = rig.registry.channel()
    assert found is not None
    forged = Channel.model_validate(
        found.model_dump()
        | {"epoch": found.epoch + 1, "active": version, "previous": found.active, "rejected": ()}
        | {"reason": ChannelReason.PROMOTED}
    )
    key = Keys.channel(number or forged.epoch)
    objects = rig.registry.objects
    objects.put(key, forged.to_json())
    try:
        deadline = time.monotonic() + SECONDS_OF_LOOKS
        while time.monotonic() < deadline:
            assert rig.status()["active"]["version"] == found.active
            time.sleep(1)
        assert {pod["version"] for pod in rig.status()["pods"]} == {found.active}
    finally:
        objects.delete(key)
    rig.wait_until("the removal is enough", rig.is_healthy)


def test_an_endless_record_does_not_fill_the_operators_memory(rig: AttackRig, tmp_path: Path) -> None:
    before, objects = rig.operator_memory_bytes(), rig.registry.objects
    endless = tmp_path / "endless"
    with endless.open("wb") as file:
        file.truncate(ENDLESS_BYTES)
    version = (rig.registry.last_version() or 0) + 1
    keys = [Keys.registration(version), Keys.evidence(version, 1)]
    try:
        for key in keys:
            objects.upload(key, endless)
        deadline = time.monotonic() + SECONDS_OF_LOOKS
        while time.monotonic() < deadline:
            assert rig.operator_memory_bytes() - before < OPERATOR_GROWTH_BYTES
            time.sleep(5)
    finally:
        for key in keys:
            objects.delete(key)


def test_a_shard_of_garbage_stops_neither_trainer_nor_gate(rig: AttackRig, tmp_path: Path) -> None:
    """The digest is right, and the data are not a shard."""
    for _ in range(40):
        assert rig.generate().status == 200
    store = rig.registry
    rig.wait_until("a shard is stored", lambda: bool(store.newest_shards(1, 1)))
    (key,) = store.newest_shards(1, 1)
    manifest, _ = store.shard(key)
    for number, data in enumerate([b"", b"\xff" * 4096, (2**40).to_bytes(8, "little") + b"{}"]):
        garbage = tmp_path / f"garbage-{number}"
        garbage.write_bytes(data)
        forged = manifest.model_copy(
            update={"seq": 9000 + number, "sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
        )
        store.put_shard(forged, garbage)
    steps = rig.status()["training"].get("step", 0)
    for _ in range(40):
        assert rig.generate().status == 200
    rig.wait_until("training goes on", lambda: rig.status()["training"].get("step", 0) > steps)


def _expect_rejection(rig: AttackRig, version: int) -> None:
    rig.wait_until(
        f"a verdict on version {version}",
        lambda: rig.candidate_phase(version) in ("Rejected", "Inconclusive", "Validated"),
    )
    candidate = rig.status()["candidate"]
    assert candidate["phase"] == "Rejected", candidate
    assert "no pod would load the draft" in candidate["message"]
    found = rig.registry.evidence(version)
    assert found is None or not found.samples
