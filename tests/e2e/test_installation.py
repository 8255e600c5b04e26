"""The installation on a real cluster passes its own `helm test`."""

from __future__ import annotations

from tests.rig.installation import RELEASE, SYSTEM_NAMESPACE, Installation


def test_helm_test_finds_the_crd_and_a_leading_operator(aurora: Installation) -> None:
    output = aurora.cluster.helm("test", RELEASE, "--namespace", SYSTEM_NAMESPACE, "--logs", "--timeout", "240s")
    assert output.count("ok: ") == 2, output
