"""How an engine is started and what is sent to it."""

from __future__ import annotations

import base64
import io
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from aurora_runtime.engine.admin import path_payload
from aurora_runtime.engine.loader import load_draft
from aurora_runtime.engine.process import Eagle3, EngineProcess, EngineSpec, Ngram
from aurora_runtime.errors import EngineFault

SPEC = EngineSpec(model="/m", device="cpu", kv_tokens=4096, dtype="float32", extra_args=("--log-level", "error"))
EAGLE = Eagle3(Path("/d"), 3, 3, 1, 4)


class TensorsOnly(pickle.Unpickler):
    """As strict as SGLang's: one global is admitted."""

    def find_class(self, module: str, name: str) -> Any:
        assert (module, name) == ("torch", "ByteTensor")
        return torch.ByteTensor


@pytest.mark.parametrize("path", ["/var/lib/aurora/drafts/3-0123456789ab/model.safetensors", "/tmp/ä ö/x"])  # noqa: S108
def test_the_payload_spells_the_path(path: str) -> None:
    ((name, tensor),) = TensorsOnly(io.BytesIO(base64.b64decode(path_payload(Path(path))))).load()
    assert name == "path"
    assert tensor.dtype is torch.uint8
    assert bytes(tensor.tolist()).decode() == path


def test_compared_servers_differ_in_speculation_only() -> None:
    off, eagle, ngram = (SPEC.arguments(21000, s, 0.4) for s in (None, EAGLE, Ngram(4)))
    extra = "--speculative-draft-attention-backend"
    port = off.index("--nccl-port") + 1
    for other in (eagle, ngram):
        other[port] = off[port]
        assert [a for a in off if a not in other] == []
    assert "--speculative-algorithm" not in off
    assert extra not in off
    assert eagle[eagle.index("--weight-version") + 1] == "3"


def test_credentials_do_not_reach_the_engine() -> None:
    variables = SPEC.environment({"AWS_SECRET_ACCESS_KEY": "s", "AWS_ACCESS_KEY_ID": "a", "PATH": "/bin"})
    assert variables["PATH"] == "/bin"
    assert not [name for name in variables if name.startswith("AWS_")]


class Recorder:
    def __init__(self) -> None:
        self.loaded: list[str] = []

    def load_weights(self, weights: list[tuple[str, torch.Tensor]]) -> None:
        self.loaded = [name for name, _ in weights]


def test_the_loader_leaves_embedding_and_maps_alone_and_never_raises(tmp_path: Path) -> None:
    names = ("fc.weight", "d2t", "t2d", "model.embed_tokens.weight", "lm_head.weight")
    save_file({name: torch.zeros(2) for name in names}, tmp_path / "w.safetensors")
    model = Recorder()
    load_draft(model, [("path", torch.tensor(list(str(tmp_path / "w.safetensors").encode()), dtype=torch.uint8))])
    assert sorted(model.loaded) == ["fc.weight", "lm_head.weight"]
    for bad in (
        [("path", torch.tensor(list(b"/nowhere"), dtype=torch.uint8))],
        [],
        [("path", torch.tensor([255, 254]))],
    ):
        other = Recorder()
        load_draft(other, bad)
        assert other.loaded == []


def test_an_engine_that_dies_is_reported_with_its_last_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = "import sys; print('no such model'); sys.exit(3)"
    monkeypatch.setattr(EngineSpec, "arguments", lambda *_: [sys.executable, "-c", script])
    process = EngineProcess("off", tmp_path / "log")
    process.start(SPEC, None)
    try:
        with pytest.raises(EngineFault, match="no such model"):
            process.wait_ready(time.monotonic() + 30)
    finally:
        process.stop()


def test_stop_leaves_no_process_of_the_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    monkeypatch.setattr(EngineSpec, "arguments", lambda *_: [sys.executable, "-c", script])
    process = EngineProcess("off", tmp_path / "log")
    process.start(SPEC, None)
    try:
        deadline = time.monotonic() + 20
        while not process.tail().strip() and time.monotonic() < deadline:
            time.sleep(0.05)
        child = int(process.tail())
    finally:
        process.stop()
    assert not process.alive()
    for _ in range(100):
        if _gone(child):
            break
        time.sleep(0.05)
    assert _gone(child)


def _gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return state.startswith("Z") or not state.strip()


def test_a_server_asked_to_stop_gets_sigterm_in_its_main_process_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('asked', flush=True), sys.exit(0)))\n"
        "print('up', flush=True)\n"
        "time.sleep(600)\n"
    )
    monkeypatch.setattr(EngineSpec, "arguments", lambda *_: [sys.executable, "-c", script])
    process = EngineProcess("off", tmp_path / "log")
    process.start(SPEC, None)
    deadline = time.monotonic() + 20
    while "up" not in process.tail() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.stop()
    process.stop()
    assert process.tail().splitlines() == ["up", "asked"]
