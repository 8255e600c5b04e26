"""SGLang rotates by a draft's saved config as training does. No server runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from aurora_runtime.cpu.launch_settings import environment
from aurora_runtime.engine.draft_config import config_from_json, config_json
from aurora_runtime.training.model.draft import DraftModel
from tests.unit.training.model.test_rope import SCALINGS, config_of

POSITIONS = [0, 1, 2, 900, 2047]
HEAD = 128


def rotate_with_sglang(folder: Path) -> None:
    """Rotate the queries in ``folder`` by the config there, as models/llama.py (0.5.23) does."""
    from sglang.srt.layers.rotary_embedding import get_rope
    from transformers import LlamaConfig

    config = LlamaConfig(**json.loads((folder / "config.json").read_text()))
    rope = get_rope(
        HEAD,
        HEAD,
        max_position=config.max_position_embeddings,
        base=config.rope_parameters["rope_theta"],
        rope_scaling=config.rope_parameters,
        dtype=torch.float32,
    )
    queries = load_file(folder / "queries.safetensors")["queries"]
    rotated, _ = rope.forward_native(torch.tensor(POSITIONS), queries, queries.clone())
    save_file({"queries": rotated.contiguous()}, folder / "rotated.safetensors")


@dataclass(frozen=True)
class Rotated:
    """The same queries, rotated by the draft and by SGLang, each ``[heads, positions, HEAD]``."""

    by_draft: Tensor
    by_sglang: Tensor


def rotate_with_draft(folder: Path, scaling: dict[str, Any]) -> Tensor:
    """Save a draft's config and unrotated queries in ``folder``. Returns the queries that the draft rotated."""
    config = config_of(scaling, theta=10_000.0, max_positions=4096)
    saved = json.dumps(config_json(config))
    folder.mkdir()
    (folder / "config.json").write_text(saved)
    torch.manual_seed(2)
    draft = DraftModel(config_from_json(json.loads(saved)), torch.empty(400, 64))
    inputs, positions = torch.randn(1, len(POSITIONS), 128), torch.tensor([POSITIONS])
    save_file({"queries": draft.midlayer.self_attn.q_proj(inputs)[0]}, folder / "queries.safetensors")
    return draft.queries(inputs, positions)[0]


@pytest.fixture(scope="module")
def rotated(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Rotated]:
    """The queries of all scalings. One process of SGLang rotates them all, because it imports for seconds."""
    base = tmp_path_factory.mktemp("rope")
    folders = {name: base / str(number) for number, name in enumerate(SCALINGS)}
    with torch.no_grad():
        by_draft = {name: rotate_with_draft(folder, SCALINGS[name]) for name, folder in folders.items()}
    subprocess.run(
        [sys.executable, "-m", __name__, *map(str, folders.values())],
        env=os.environ | environment({"PYTHONPATH": os.pathsep.join(sys.path)}),
        check=True,
        timeout=300,
    )
    return {name: Rotated(by_draft[name], read_rotated(folder)) for name, folder in folders.items()}


def read_rotated(folder: Path) -> Tensor:
    """The queries that SGLang rotated."""
    queries = load_file(folder / "rotated.safetensors")["queries"]
    return queries.view(len(POSITIONS), -1, HEAD).transpose(0, 1)


@pytest.mark.parametrize("scaling", SCALINGS)
def test_sglang_rotates_as_the_draft_does(rotated: dict[str, Rotated], scaling: str) -> None:
    both = rotated[scaling]
    torch.testing.assert_close(both.by_draft, both.by_sglang, atol=1e-3, rtol=0.0)


def main(folders: Iterable[str]) -> None:
    for folder in folders:
        rotate_with_sglang(Path(folder))


if __name__ == "__main__":
    main(sys.argv[1:])
