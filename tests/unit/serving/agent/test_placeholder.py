"""A pod that started without a draft takes the active version, unless its engine has room for other sizes."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from aurora_protocol.agent_api import SwapPhase
from aurora_protocol.draft_records import CONFIG_FILE, CheckpointManifest
from aurora_runtime.engine.draft_config import config_json, lineage_config
from aurora_runtime.engine.draft_file_check import WEIGHTS
from aurora_runtime.engine.speculation_settings import PLACEHOLDER_VERSION
from aurora_runtime.serving.pod_files import MANIFEST
from aurora_store.objects import sha256_file
from tests.unit.fakes import draft_tensors, lineage, safetensors
from tests.unit.serving.agent.rigs import PodRig


async def start_without_draft(rig: PodRig, *, steps_of_width: int = 0) -> None:
    """Start engine and agent as in a pod that found no draft: only a placeholder is there, and no lineage."""
    rig.folder.lineage.unlink()
    config = lineage_config(lineage())
    config = replace(config, intermediate_size=config.intermediate_size + steps_of_width)
    part = rig.folder.drafts / "placeholder"
    part.mkdir()
    (part / WEIGHTS).write_bytes(safetensors(draft_tensors(0.0)))
    (part / CONFIG_FILE).write_text(json.dumps(config_json(config)))
    digest = sha256_file(part / WEIGHTS)
    manifest = CheckpointManifest(
        lineage=1,
        version=PLACEHOLDER_VERSION,
        digest=digest,
        files=(),
        step=0,
        trained_tokens=0,
        created=datetime.now(UTC),
    )
    (part / MANIFEST).write_bytes(manifest.to_json())
    folder = rig.folder.draft(PLACEHOLDER_VERSION, digest)
    part.rename(folder)
    rig.folder.make_current(folder)
    rig.start_engine("b2")
    rig.start_agent()
    assert await rig.pod.ready()


async def test_the_engine_keeps_the_placeholder_until_a_draft_can_be_loaded(rig: PodRig) -> None:
    await start_without_draft(rig)
    assert not rig.drafts.has_draft
    rig.registry.create_lineage(lineage())
    rig.engine.faults["update_weights_from_tensor"] = "before"
    await rig.swap(1)
    state = await rig.pod.state()
    assert (state.engine_ready, state.version, state.swap.phase) == (True, None, SwapPhase.FAILED)
    assert not state.swap.needs_restart
    await rig.swap(1, epoch=3)
    assert rig.serves(1)
    assert rig.drafts.has_draft
    assert (await rig.pod.state()).version == 1


@pytest.mark.parametrize("lineage_exists", [True, False])
async def test_only_a_lineage_of_other_sizes_asks_for_a_restart_and_it_blames_no_draft(
    rig: PodRig, lineage_exists: bool
) -> None:
    await start_without_draft(rig, steps_of_width=1)
    if lineage_exists:
        rig.registry.create_lineage(lineage())
    rig.engine.calls.clear()
    await rig.swap(1)
    swap = rig.swapper.status
    assert (swap.phase, swap.transient, swap.needs_restart) == (SwapPhase.FAILED, True, lineage_exists)
    assert "pause_generation" not in rig.engine.calls
    assert await rig.pod.ready()
