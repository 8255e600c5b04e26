"""With the documented IAM policy of its role, each part does its whole work, and the store refuses any other write.

The server is SeaweedFS, which judges each request by the policy files in ``docs/samples/iam``. The trainer is the real
one on a tiny target.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from boto3.s3.transfer import TransferConfig

from aurora_api.v1alpha1.draft import DraftSpec
from aurora_api.v1alpha1.target import TargetSpec
from aurora_api.v1alpha1.validation import ValidationSpec
from aurora_operator.observe.store.store_reader import StoreNeeds
from aurora_protocol.draft_records import Registration
from aurora_protocol.evidence_records import Evidence, VerdictKind
from aurora_protocol.pod_settings import SETTINGS_VARIABLE, StoreSettings, ValidationSettings
from aurora_runtime import termination_message
from aurora_runtime.pod_registry import PodRegistry
from aurora_runtime.serving.agent.main import stage_active_draft
from aurora_runtime.serving.agent.uploader import Uploader
from aurora_runtime.serving.pod_files import PodFolder
from aurora_runtime.tag_erasure import TagErasure
from aurora_runtime.training.lineage import open_lineage, utc_now
from aurora_runtime.training.retry import Retrier
from aurora_runtime.training.state import shard_ledger
from aurora_runtime.validation import main as validation_main
from aurora_runtime.validation.store_reads import fetch_draft, read_traffic
from aurora_store import ObjectStore
from aurora_store import objects as objects_module
from aurora_store.errors import DraftExpired, ObjectRefused
from aurora_store.root_deletion import RootDeletion
from aurora_store.s3_client import S3Clients
from tests.assets.s3 import S3
from tests.assets.signing import ROOT_OWNER, write_keys
from tests.assets.trainer_output import publish_draft
from tests.integration.store.roles import config_of, operators_reader, registry_of, store_of, store_with_roles
from tests.unit.operator.worlds import channel, evidence
from tests.unit.serving.agent.test_uploader import shard
from tests.unit.training import tiny
from tests.unit.training.trainer_rig import Traffic, TrainerRig

SHARDS = 12
"""Twice as many as the trainer of the rig keeps, so that it deletes some."""
UNUSED_ROOT = "aurora/default/chat-0a0a0a0a"
EVERYTHING = StoreNeeds(versions=frozenset({1}))


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    with store_with_roles() as server:
        yield server


def train(s3: S3, folder: Path) -> Registration:
    """The trainer's whole work: lineage, initial draft, training with traces from agents, states, a candidate."""
    own = registry_of(s3, "training")
    own.objects.probe()
    rig = TrainerRig(folder / "target")
    rig.registry, rig.lineage = own, open_lineage(own, rig.target, tiny.DRAFT_SPEC, utc_now)
    traffic = Traffic(registry_of(s3, "serving"), SHARDS, reader=own)
    rig.trainer(traffic).run()
    states = own.trainer_state_epochs()
    assert len(states) == 2
    assert states[-1] > 2, "older states were deleted"
    assert 0 < len(own.list_shards(1).data_bytes) < SHARDS, "older shards were deleted"
    initial = folder / "initial"
    own.fetch_checkpoint(own.registration(0), initial)
    return publish_draft(own, initial, 1)


def serve(s3: S3, folder: Path) -> None:
    """The agent's whole work: stage the active draft, and upload a shard."""
    own, state = registry_of(s3, "serving"), PodFolder(folder / "state")
    draft = stage_active_draft(state, own, find_seconds=0)
    assert draft is not None
    assert draft.version == 0
    shard(state.spool, 7)
    uploader = Uploader(state.spool, own)
    uploader.upload_spool()
    assert uploader.counters.uploaded == 1


def measure(s3: S3, candidate: Registration, folder: Path) -> None:
    """The validator's whole work in the store, without the measurement itself."""
    own = registry_of(s3, "validation")
    lineage = own.lineage()
    assert lineage is not None
    fetch_draft(own, candidate, lineage, folder / "candidate")
    assert read_traffic(own, 1, vocab_size=tiny.VOCAB, wanted=1, needed=1)
    assert own.last_version() == 1
    own.put_evidence(evidence(1, VerdictKind.REJECT))


def test_every_part_does_its_whole_work_with_the_rights_of_its_role(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_ledger, "CHEAP_LISTING_SECONDS", 60.0)  # a busy machine lists no less often
    reader = operators_reader(config_of(s3, "operator"))
    empty = reader.read(EVERYTHING)
    assert empty.ok, empty.error
    candidate = train(s3, tmp_path)
    reader.advance(channel(0))
    serve(s3, tmp_path)
    measure(s3, candidate, tmp_path)
    seen = reader.read(EVERYTHING)
    assert seen.ok, seen.error
    assert seen.trainer is not None
    assert set(seen.registrations) == {0, 1}
    assert [one.version for one in seen.evidence] == [1]
    reader.advance(channel(1, epoch=2, previous=0))
    expire(s3, candidate)
    assert reader.read(EVERYTHING).expired == {1}


def expire(s3: S3, candidate: Registration) -> None:
    """The trainer's work when a draft expires, and what the others see of it."""
    own = registry_of(s3, "training")
    assert own.measured_versions() == {1}
    assert not own.has_passed(1)
    own.expire(1, utc_now())
    for key in list(own.objects.list(candidate.checkpoint)):
        own.objects.delete(key)
    for role in ("serving", "validation"):
        with pytest.raises(DraftExpired):
            registry_of(s3, role).checkpoint(candidate)


WRITES: dict[str, Callable[[ObjectStore, str, Path], None]] = {
    "put": lambda objects, key, _: objects.put(key, b"1"),
    "create": lambda objects, key, _: objects.create(key, b"1"),
    "upload": lambda objects, key, file: objects.upload(key, file),
    "create_file": lambda objects, key, file: objects.create_file(key, file),
    "delete": lambda objects, key, _: objects.delete(key),
}
FOREIGN_KEYS = {
    "serving": (
        "lineage/00000009.json",
        "registry/00000009.json",
        "expired/00000009.json",
        "checkpoints/00000009-abcdefabcdef/manifest.json",
        "evidence/00000001/00000009.json",
        "channel/00000009.json",
        "channel/traces/00000009.json",
        "trainer/status.json",
        "trainer/state/00000009.json",
        "probe/0",
    ),
    "training": (
        "evidence/00000001/00000009.json",
        "channel/00000009.json",
        "channel/registry/00000009.json",
        "evidence/checkpoints/00000009.json",
    ),
    "validation": (
        "lineage/00000009.json",
        "traces/00000001/2026-01-01/00/pod-0-b-00000009.json",
        "registry/00000009.json",
        "expired/00000009.json",
        "checkpoints/00000009-abcdefabcdef/manifest.json",
        "channel/00000009.json",
        "channel/evidence/00000009.json",
        "trainer/state/00000009.json",
    ),
    "operator": (
        "lineage/00000009.json",
        "traces/00000001/2026-01-01/00/pod-0-b-00000009.json",
        "registry/00000009.json",
        "expired/00000009.json",
        "checkpoints/00000009-abcdefabcdef/manifest.json",
        "evidence/00000001/00000009.json",
        "trainer/state/00000009.json",
    ),
}


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("role", FOREIGN_KEYS)
def test_a_write_of_another_role_is_refused_and_the_error_names_the_missing_right(
    s3: S3, tmp_path: Path, role: str, write: str
) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"1")
    # Without the fence of the pods' stores, which a compromised part would leave out.
    admin, own = (ObjectStore(config_of(s3, who, UNUSED_ROOT), attempts=1) for who in (None, role))
    right = "s3:DeleteObject" if write.startswith("delete") else "s3:PutObject"
    for key in FOREIGN_KEYS[role]:
        if not write.startswith("create"):
            admin.put(key, b"kept")
        with pytest.raises(ObjectRefused, match=f"AccessDenied; allow {right} for these credentials"):
            WRITES[write](own, key, file)
        assert list(admin.list(key)) == ([] if write.startswith("create") else [key])
        if not write.startswith("create"):
            assert admin.get(key) == b"kept"
            admin.delete(key)


def test_an_upload_in_parts_is_refused_in_the_same_words(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects_module, "TRANSFER", TransferConfig(multipart_threshold=1 << 20, use_threads=False))
    file = tmp_path / "large"
    file.write_bytes(bytes(6 << 20))
    key = "checkpoints/00000009-abcdefabcdef/model.safetensors"
    with pytest.raises(ObjectRefused, match="allow s3:PutObject"):
        store_of(s3, "serving").upload(key, file)
    store_of(s3, "training").upload(key, file)
    store_of(s3, "training").delete(key)


@pytest.mark.parametrize("role", FOREIGN_KEYS)
def test_no_role_reaches_another_root_or_what_it_needs_not(s3: S3, role: str) -> None:
    for root in ("aurora/default/chat-two-01234567", "aurora/other/chat-01234567"):
        store_of(s3, None, root).put("traces/00000001/x.json", b"foreign")
        other = store_of(s3, role, root)
        with pytest.raises(ObjectRefused, match="allow s3:GetObject"):
            other.get("traces/00000001/x.json")
        with pytest.raises(ObjectRefused, match="allow s3:ListBucket"):
            list(other.list("traces/"))
    store_of(s3, None).put("trainer/state/00000001.json", b"weights")
    if role != "training":
        with pytest.raises(ObjectRefused):
            store_of(s3, role).get("trainer/state/00000001.json")
    if role == "serving":
        with pytest.raises(ObjectRefused):
            store_of(s3, role).get("traces/00000001/2026-01-01/00/pod-0-b-00000009.json")


def test_an_agent_without_the_right_to_write_keeps_its_shards_and_says_which_right_it_needs(
    s3: S3, tmp_path: Path
) -> None:
    spool = tmp_path / "spool"
    data = shard(spool, 1)
    uploader = Uploader(spool, PodRegistry(ObjectStore(config_of(s3, "validation"), attempts=1)))
    with pytest.raises(ObjectRefused, match="allow s3:PutObject"):
        uploader.upload_spool()
    assert data.exists()


def test_a_trainer_without_the_right_to_write_waits_until_it_gets_the_right(s3: S3) -> None:
    retrier, said = Retrier(), list[str]()

    def on_failure(message: str) -> None:
        said.append(message)
        role[0] = "training"

    role = ["validation"]
    retrier.call("saving", lambda: store_of(s3, role[0]).put("trainer/status.json", b"{}"), on_failure)
    assert len(said) == 1
    assert "allow s3:PutObject" in said[0]


def test_a_tag_is_erased_with_the_rights_of_the_trainer(s3: S3) -> None:
    root, tag = "aurora/default/chat-00e4a5e0", 5
    serving, own = (registry_of(s3, role, root) for role in ("serving", "training"))
    tiny.put_shard(serving, 0, [replace(tiny.trace(1), tag=tag), tiny.trace(2)])
    erased = TagErasure(own, [tag]).run()
    assert (erased.shards, erased.requests) == (1, 1)


def test_the_operator_deletes_a_root_only_with_the_right_to_delete(s3: S3) -> None:
    root = "aurora/default/chat-89abcdef"
    admin = store_of(s3, None, root)
    admin.put("traces/00000001/x.json", b"trace")
    PodRegistry(admin).advance_channel(channel(0))
    deletion = RootDeletion(config_of(s3, "operator", root), ROOT_OWNER.id, attempts=1)
    with pytest.raises(ObjectRefused, match=r"delete traces/00000001/x.json: AccessDenied; allow s3:DeleteObject"):
        deletion.step(10)
    assert admin.get("traces/00000001/x.json") == b"trace"


@pytest.mark.parametrize(("role", "written"), [("validation", True), ("serving", False)])
def test_a_validator_stores_its_evidence_or_ends_with_the_missing_right_as_its_last_word(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, role: str, written: bool
) -> None:
    config, said = config_of(s3, role, f"aurora/default/chat-{len(role):08d}"), tmp_path / "termination"
    settings = ValidationSettings(
        namespace="default",
        name="chat",
        target=TargetSpec(model="m"),
        draft=DraftSpec(),
        validation=ValidationSpec(),
        store=StoreSettings(owner=ROOT_OWNER.id, bucket=config.bucket, root=config.root, endpoint=config.endpoint),
        candidate=1,
        active=0,
        attempt=1,
    )

    async def measured(*_: object) -> Evidence:
        return evidence(1)

    said.touch()
    write_keys(tmp_path / "keys")
    monkeypatch.setattr(validation_main, "validate", measured)
    monkeypatch.setattr(termination_message, "TERMINATION_LOG", said)
    monkeypatch.setenv(SETTINGS_VARIABLE, settings.to_variable())
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", str(config.access_key))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", str(config.secret_key))
    monkeypatch.setattr(objects_module, "SHARED_CLIENTS", S3Clients())
    if written:
        validation_main.main(["--signing", str(tmp_path / "keys")])
    else:
        with pytest.raises(SystemExit, match="1"):
            validation_main.main(["--signing", str(tmp_path / "keys")])
    stored = list(store_of(s3, None, config.root).list("evidence/"))
    assert stored == (["evidence/00000001/00000001.json"] if written else [])
    assert ("allow s3:PutObject for these credentials" in said.read_text()) is not written


@pytest.mark.parametrize("role", ["serving", "validation"])
def test_an_operator_with_the_keys_of_another_role_names_the_missing_right_and_decides_nothing(
    s3: S3, role: str
) -> None:
    reader = operators_reader(config_of(s3, role, "aurora/default/chat-0b0b0b0b"))
    view = reader.read(EVERYTHING)
    assert not view.ok
    assert "allow s3:ListBucket for these credentials" in view.error
    with pytest.raises(ObjectRefused):
        reader.advance(channel(0))
