"""Our loader in SGLang's own draft model, on one tensor-parallel rank and on two. No server runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from aurora_runtime.cpu.launch_settings import environment
from aurora_runtime.engine.server_process import free_port
from aurora_store.objects import sha256_file
from tests.assets.model import ensure_model
from tests.assets.random_draft import write_random_draft

pytestmark = pytest.mark.timeout(600)

Tensors = dict[str, torch.Tensor]
DRAFT_VOCABULARY = 300
LAYER = "midlayer.self_attn"
KEYS = f"{LAYER}.k_proj.weight"

BAD: dict[str, tuple[Callable[[Tensors], object], str]] = {
    "columns": (lambda t: t.update({KEYS: t[KEYS][:, :-1].clone()}), "k_proj.weight: ["),
    "float8": (lambda t: t.update({KEYS: t[KEYS].to(torch.float8_e4m3fn)}), "torch.float8_e4m3fn"),
    "head": (lambda t: t.update({"lm_head.weight": t["lm_head.weight"][:-1].clone()}), "lm_head.weight: ["),
    "map": (lambda t: t.update(d2t=t["d2t"][:-1].clone()), "the map has shape [299]"),
    "missing": (lambda t: t.pop(KEYS), "(k_proj)"),
    "rows": (lambda t: t.update({KEYS: torch.cat((t[KEYS], t[KEYS]))}), "k_proj.weight: ["),
    "unknown": (lambda t: t.update({f"{LAYER}.scale": torch.ones(1)}), f"has no place for {LAYER}.scale"),
}


def write_target(folder: Path, heads: int, kv_heads: int) -> Path:
    """The model of the tests with other numbers of heads. Nothing reads its weights."""
    folder.mkdir(parents=True)
    for file in ensure_model().iterdir():
        (folder / file.name).symlink_to(file.resolve())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").unlink()
    config |= {"num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": 64}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def run_ranks(folder: Path, ranks: int) -> list[list[dict[str, Any]]]:
    """The loads of each rank."""
    port = str(free_port())
    module = [sys.executable, "-m", "tests.integration.engine.draft_model_ranks"]
    processes = [
        subprocess.Popen(
            [*module, str(rank), str(ranks), port, str(folder)],
            env=os.environ | environment({"PYTHONPATH": os.pathsep.join(sys.path)}),
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * ranks
    return [json.loads(output.splitlines()[-1]) for output in outputs]


@pytest.mark.parametrize(
    ("ranks", "heads", "kv_heads"),
    [(1, 9, 3), (2, 8, 2), (2, 8, 1)],
    ids=["one rank", "two ranks", "two ranks that share the keys"],
)
def test_every_rank_takes_a_whole_file_or_nothing(tmp_path: Path, ranks: int, heads: int, kv_heads: int) -> None:
    target = write_target(tmp_path / "target", heads, kv_heads)
    write_random_draft(tmp_path / "draft", target, draft_vocabulary=DRAFT_VOCABULARY)
    other = write_random_draft(tmp_path / "other", target, seed=1, draft_vocabulary=DRAFT_VOCABULARY)
    tensors = load_file(other / "model.safetensors") | {"d2t": torch.arange(DRAFT_VOCABULARY)}
    good = {"a first": tensors, "z last": load_file(tmp_path / "draft" / "model.safetensors")}
    for name, (change, _) in BAD.items():
        bad = tensors.copy()
        change(bad)
        save_file(bad, tmp_path / f"bad {name}.safetensors")
    for name, content in good.items():
        save_file(content, tmp_path / f"{name}.safetensors")
    first, last = (sha256_file(tmp_path / f"{name}.safetensors") for name in good)
    for loads in run_ranks(tmp_path, ranks):
        by_file = {load["file"]: load for load in loads}
        for name, digest in zip(good, (first, last), strict=True):
            assert by_file[name] == {"file": name, "digest": digest, "reason": "", "changed": True, "whole": True}
        for name, (_, why) in BAD.items():
            load = by_file[f"bad {name}"]
            assert (load["changed"], load["digest"]) == (False, first), name
            assert load["reason"].startswith("the draft was not loaded: ")
            assert why in load["reason"], name
