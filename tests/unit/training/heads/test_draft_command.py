"""``aurora-draft`` publishes the active version and checks heads, in words and with an exit code."""

from __future__ import annotations

from pathlib import Path

import pytest

from aurora_protocol.draft_records import Channel, ChannelReason
from aurora_protocol.pod_settings import SETTINGS_VARIABLE
from aurora_runtime.pod_registry import PodRegistry
from aurora_runtime.training import draft_command, lineage
from aurora_runtime.training.heads.published_head import read_head
from tests.assets.signing import KEYS, ROOT_OWNER
from tests.unit.training.heads import published
from tests.unit.training.test_candidates import session_with_gain
from tests.unit.training.trainer_rig import TrainerRig


@pytest.fixture(name="rig")
def _rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainerRig:
    """A speculator with the versions 0 and 1, of which 0 is active."""
    rig = TrainerRig(tmp_path / "target")
    rig.registry = PodRegistry(rig.objects, KEYS)
    session, candidates, held_out = session_with_gain(rig.registry, rig.target)
    assert candidates.offer(session, held_out, 300).registration is not None
    monkeypatch.setenv(SETTINGS_VARIABLE, rig.settings.to_variable())
    monkeypatch.setattr(draft_command, "open_registry", lambda _settings: rig.registry)
    return rig


def activate(registry: PodRegistry, version: int, digest: str | None = None) -> None:
    registry.advance_channel(
        Channel(
            owner=ROOT_OWNER,
            epoch=1,
            lineage=1,
            active=version,
            active_digest=digest,
            reason=ChannelReason.INITIAL,
            created=lineage.utc_now(),
        )
    )


def test_the_active_version_is_exported_unless_another_is_named(
    rig: TrainerRig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert draft_command.main(["export", "--to", str(tmp_path / "newest")]) == 0
    assert "version 1 is in" in capsys.readouterr().out
    activate(rig.registry, 0)
    for name, arguments in {"active": [], "named": ["--version", "1", "--format", "speculators"]}.items():
        assert draft_command.main(["export", "--to", str(tmp_path / name), *arguments]) == 0
    assert "version 0 is in" in (said := capsys.readouterr().out)
    assert f"version 1 is in {tmp_path / 'named'}, in the format of speculators" in said
    assert draft_command.main(["check", str(tmp_path / "named")]) == 0
    assert "it can propose 300 of 400 tokens, and reads the outputs of layers 1, 3, 4." in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["--version", "1"]])
def test_other_weights_than_the_channel_names_are_not_exported(
    rig: TrainerRig, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    """Somebody registered other weights under the number of the active version."""
    activate(rig.registry, 1, rig.registry.registration(0).digest)
    folder = tmp_path / "head"
    assert draft_command.main(["export", "--to", str(folder), *arguments]) == 1
    assert "registry/00000001.json names other weights than the channel does" in capsys.readouterr().err
    assert not (folder / "model.safetensors").exists()
    assert draft_command.main(["export", "--to", str(folder), "--version", "0"]) == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["export", "--to", "target"], "holds files already; name a new folder"),
        (["export", "--to", "new", "--version", "7"], "version 7 is not registered, or its files are gone"),
        (["check", "nowhere"], "nowhere: the hub cannot be reached"),
        (["check", "--revision=--evil", "org/head"], "is not one of a Hugging Face model"),
    ],
)
def test_a_failure_is_one_sentence_and_exit_code_1(
    rig: TrainerRig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert draft_command.main(arguments) == 1
    captured = capsys.readouterr()
    assert words in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""


def test_a_head_that_does_not_fit_is_refused_by_the_check(
    rig: TrainerRig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draft, vocabulary = published.trained_draft(rig.target)
    config, tensors = published.specforge(draft, vocabulary.to_target, rig.target)
    head = published.write(tmp_path / "head", (config | {"vocab_size": 401}, tensors))
    assert draft_command.main(["check", head.model]) == 1
    assert "its vocab_size is 401 and the target's is 400" in capsys.readouterr().err
    published.write(tmp_path / "head", (config, tensors))
    assert draft_command.main(["check", head.model]) == 0
    assert read_head(head, rig.target).origin.sha256 in capsys.readouterr().out
