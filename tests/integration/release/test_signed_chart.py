"""The chart in a registry is signed and verified with cosign, which takes minutes to build on a new machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cluster.command import CommandError, run
from tests.generated.generated_file import ROOT
from tests.rig.chart.pushed_chart import PushedChart, pushed_chart
from tests.rig.go_tools import built_tool

COSIGN = ROOT / "tests/rig/chart/cosign"
OFFLINE = ("--trusted-root", "root.json", "--private-infrastructure", "--allow-insecure-registry")
"""Without the public log of signatures and its keys, so that a test asks nobody outside of this machine."""
NO_ROOTS = {"mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1"}


def _cosign(folder: Path, *arguments: str | Path) -> str:
    """Run cosign with a home and a password of its own. A failure raises ``CommandError``."""
    environment = {"HOME": str(folder), "COSIGN_PASSWORD": "only for tests"}
    return run(built_tool(COSIGN), *arguments, env=environment, cwd=folder)


def test_a_signed_chart_is_verified_by_its_key_and_by_no_other(tmp_path: Path) -> None:
    """Signed by digest, as ``docs/how-to/installing.md`` tells."""
    with pushed_chart(tmp_path) as chart:
        _sign_and_verify(chart, tmp_path)


def _sign_and_verify(chart: PushedChart, tmp_path: Path) -> None:
    ours, other = tmp_path / "ours", tmp_path / "other"
    for folder in (ours, other):
        folder.mkdir()
        (folder / "root.json").write_text(json.dumps(NO_ROOTS))
        _cosign(folder, "generate-key-pair")
    signed = f"{chart.reference.removeprefix('oci://')}@{chart.digest}"
    verify = ("verify", "--key", "cosign.pub", *OFFLINE, signed)
    with pytest.raises(CommandError, match="no signatures found"):
        _cosign(ours, *verify)
    log = ("--tlog-upload=false", "--allow-insecure-registry", "--yes")
    _cosign(ours, "sign", "--key", "cosign.key", *log, signed)
    (claim,) = json.loads(_cosign(ours, *verify))
    assert claim["critical"]["image"]["docker-manifest-digest"] == chart.digest
    with pytest.raises(CommandError, match="no matching signatures"):
        _cosign(other, *verify)
