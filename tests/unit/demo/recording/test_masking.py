"""Recordings name no path of the machine, no name of its user or host, and no secret."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.demo.recording.masking import Mask

MASK = Mask.of_machine(
    Path("/home/ada/aurora"),
    user="ada",
    host="build-7.example.org",
    environment={"HF_TOKEN": "hf_0123456789", "S3_SECRET": "short", "LANG": "hf_9876543210"},
)


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("report: /home/ada/aurora/build/demo/report.html\r\n", "report: build/demo/report.html\r\n"),
        ("in /home/ada/aurora: done", "in .: done"),
        ("kubectl apply -f /tmp/aurora-x1/speculator.json", "kubectl apply -f …/speculator.json"),
        ("export KUBECONFIG=/home/ada/.cache/aurora/kubeconfig", "export KUBECONFIG=…"),
        ("'/home/ada' and /root and /srv", "'…' and … and …"),
        ("\x1b[1m/opt/x/y.log\x1b[0m", "\x1b[1m…/y.log\x1b[0m"),
        ("by ada on build-7.example.org, which is build-7", "by … on …, which is …"),
        ("HF_TOKEN=hf_0123456789!", "HF_TOKEN=…!"),
    ],
)
def test_what_tells_about_the_machine_is_masked(text: str, masked: str) -> None:
    assert MASK.apply(text) == masked
    assert len(masked) <= len(text)


@pytest.mark.parametrize(
    "text",
    [
        "acceptance length   ▁▂▃▄█  2.07, 161.7 tok/s",
        "candidate/active  1  1.34x  [1.16, 1.54]  2/2",
        "adapted, short, hf_9876543210",
        "http://10.99.128.7:8333/aurora and `make demo`",
        "\r\x1b[2K\x1b[1A\x1b[2K\x1b[?25l",
    ],
)
def test_everything_else_stays(text: str) -> None:
    assert MASK.apply(text) == text


def test_names_that_most_machines_have_are_no_secret() -> None:
    mask = Mask.of_machine(Path("/a"), user="root", host="vm", environment={})
    assert mask.apply("the root of a vm on localhost") == "the root of a vm on localhost"
