"""Our loader in SGLang's own draft model, on one tensor-parallel rank and on two. No server runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from aurora_runtime.cpu.launch_settings import environment
from aurora_store.objects import sha256_file
from tests.assets.model import ensure_model
from tests.assets.random_draft import write_random_draft

pytestmark = pytest.mark.timeout(600)

Tensors = dict[str, torch.Tensor]
DRAFT_VOCABULARY = 300

BAD: dict[str, tuple[Callable[[Tensors], object], str]] = {
    "map": (lambda t: t.update(d2t=t["d2t"][:-1].clone()), "the map has shape [299]"),
    "no map": (lambda t: t.pop("d2t"), "KeyError"),
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


@dataclass(frozen=True)
class Loaded:
    """The files of one target, and what loading them did.

    Attributes:
        digests: of the first and of the last file, which are good.
        ranks: the loads of each rank.
    """

    digests: tuple[str, str]
    ranks: list[list[dict[str, Any]]]


SIZES = {"one rank": (1, 9, 3), "two ranks": (2, 8, 2), "two ranks that share the keys": (2, 8, 1)}
"""Ranks, heads and heads of the keys."""
GOOD = ("a first", "z last")


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Loaded]:
    """The loads of all sizes. One process forks all ranks, because it imports SGLang for seconds."""
    base = tmp_path_factory.mktemp("loader")
    folders = {name: base / str(number) for number, name in enumerate(SIZES)}
    digests = {name: write_files(folders[name], heads, kv_heads) for name, (_, heads, kv_heads) in SIZES.items()}
    arguments = [argument for name, (ranks, *_) in SIZES.items() for argument in (str(ranks), str(folders[name]))]
    done = subprocess.run(
        [sys.executable, "-m", "tests.integration.engine.draft_model_ranks", *arguments],
        env=os.environ | environment({"PYTHONPATH": os.pathsep.join(sys.path)}),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    loads = json.loads(done.stdout.splitlines()[-1])
    return {name: Loaded(digests[name], by_rank) for name, by_rank in zip(SIZES, loads, strict=True)}


def write_files(folder: Path, heads: int, kv_heads: int) -> tuple[str, str]:
    """Write a target, its first draft, and draft files to load. Returns the digests of the good files."""
    target = write_target(folder / "target", heads, kv_heads)
    write_random_draft(folder / "draft", target, draft_vocabulary=DRAFT_VOCABULARY)
    other = write_random_draft(folder / "other", target, seed=1, draft_vocabulary=DRAFT_VOCABULARY)
    tensors = load_file(other / "model.safetensors") | {"d2t": torch.arange(DRAFT_VOCABULARY)}
    for name, (change, _) in BAD.items():
        bad = tensors.copy()
        change(bad)
        save_file(bad, folder / f"bad {name}.safetensors")
    files = [folder / f"{name}.safetensors" for name in GOOD]
    for file, content in zip(files, (tensors, load_file(folder / "draft" / "model.safetensors")), strict=True):
        save_file(content, file)
    return sha256_file(files[0]), sha256_file(files[1])


@pytest.mark.parametrize("size", SIZES)
def test_every_rank_takes_a_whole_file_or_nothing(loaded: dict[str, Loaded], size: str) -> None:
    ranks, digests = loaded[size].ranks, loaded[size].digests
    assert len(ranks) == SIZES[size][0]
    for loads in ranks:
        by_file = {load["file"]: load for load in loads}
        for name, digest in zip(GOOD, digests, strict=True):
            assert by_file[name] == {"file": name, "digest": digest, "reason": "", "changed": True, "whole": True}
        for name, (_, why) in BAD.items():
            load = by_file[f"bad {name}"]
            assert (load["changed"], load["digest"]) == (False, digests[0]), name
            assert load["reason"].startswith("the draft was not loaded: ")
            assert why in load["reason"], name
