"""Recordings name no path of the machine, no name of its user or host, and no secret."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.demo.recording.masking import Mask
from tests.rig.small_speculator import MODEL_PATH

MASK = Mask.of_machine(
    Path("/home/ada/aurora"),
    (Path("/home/ada"), Path("/tmp"), Path("/mnt/my disk"), Path("/")),  # noqa: S108 - only a name
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
        ("PATH=/usr/bin:/srv/eve/bin", "PATH=…:…"),
        ("error:/home/ada/aurora/build/x.log:7", "error:build/x.log:7"),
        ("${HOME:-/srv/eve/x} ->/srv/eve/x", "${HOME:-…} ->…"),
        ("file:///srv/eve/x.log, file://host/srv/eve/x.log", "file://…/x.log, file://…/x.log"),
        ("cc -I/srv/eve/inc -L/home/ada/aurora/lib", "cc -I… -Llib"),
        ("https://bob:s3cr@t@host/simple and //bob@host", "https://…@host/simple and //…@host"),
        ("see /srv/eve/x.log. Or /home/ada/aurora.", "see …/x.log. Or .."),
        ("8333/home/ada/aurora/x.log 8333/tmp/a/b", "8333x.log 8333…"),
        ("in '/mnt/my disk/a/b' and /srv//eve//x.log", "in '…' and …/x.log"),
        ("/home/ada/v1/x and /v1/home/ada/x", "… and …"),
    ],
)
def test_what_tells_about_the_machine_is_masked(text: str, masked: str) -> None:
    assert MASK.apply(text) == masked
    assert len(masked) <= len(text)


def test_columns_stay() -> None:
    table = ["FILE              OWNER   AGE", "/srv/eve/x.log:7  ada     19m", "/home/ada/aurora/  eve     19m"]
    assert [MASK.apply(line) for line in table] == [
        "FILE              OWNER   AGE",
        "…/x.log:7         …       19m",
        ".                  eve     19m",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "acceptance length   ▁▂▃▄█  2.07, 161.7 tok/s",
        "candidate/active  1  1.34x  [1.16, 1.54]  2/2",
        "adapted, short, hf_9876543210",
        "http://10.99.128.7:8333/aurora and `make demo`",
        "\r\x1b[2K\x1b[1A\x1b[2K\x1b[?25l",
        f"~1.5x                     {MODEL_PATH}   19133    302",
        "POST /v1/chat/completions, GET /healthz. GET /metrics",
        "../runtime/x.py, ./x.py and ~/x.py",
    ],
)
def test_everything_else_stays(text: str) -> None:
    assert MASK.apply(text) == text


def test_names_that_most_machines_have_are_no_secret() -> None:
    mask = Mask.of_machine(Path("/a"), (), user="root", host="vm", environment={})
    assert mask.apply("the root of a vm on localhost") == "the root of a vm on localhost"
