"""Engine starts for tests of the launcher, without files of a real pod."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from aurora_api.v1alpha1.draft import DraftSpec
from aurora_api.v1alpha1.target import TargetSpec
from aurora_protocol.agent_api import Machine
from aurora_protocol.pod_settings import ServingSettings, StoreSettings
from aurora_runtime.serving.launcher import EngineStart, LauncherOptions, StartFiles
from aurora_runtime.serving.pod_files import EngineState, PodFolder
from tests.assets.signing import ROOT_OWNER

ADMIN_KEY = "the-admin-key"
TRAFFIC_SECRET = "the-traffic-secret"  # noqa: S105 - of the tests


def settings(**options: object) -> ServingSettings:
    return ServingSettings(
        namespace="n",
        name="s",
        target=TargetSpec(model="org/model", revision="abc"),
        draft=DraftSpec(steps=2),
        store=StoreSettings(owner=ROOT_OWNER.id, bucket="bucket", root="root"),
        **options,  # type: ignore[arg-type]
    )


def engine_start(path: Path, *, port: int = 1, draft: DraftSpec | None = None) -> EngineStart:
    machine = Machine(hardware="two cores", device="cpu", engine="0.5.23", torch="2")
    return EngineStart(
        settings() if draft is None else settings().model_copy(update={"draft": draft}),
        LauncherOptions(PodFolder(path), path, port, "127.0.0.1"),
        EngineState(boot="b1", ready=False, started_at=datetime.now(UTC), machine=machine),
        StartFiles(draft=path / "draft", version=3, admin_key=ADMIN_KEY, traffic_secret=TRAFFIC_SECRET),
    )
