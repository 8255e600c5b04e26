"""SGLang rotates by a draft's saved config as training does. No server runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

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


@torch.no_grad()
@pytest.mark.parametrize("scaling", SCALINGS.values(), ids=SCALINGS)
def test_sglang_rotates_as_the_draft_does(scaling: dict[str, Any], tmp_path: Path) -> None:
    config = config_of(scaling, theta=10_000.0, max_positions=4096)
    saved = json.dumps(config_json(config))
    (tmp_path / "config.json").write_text(saved)
    torch.manual_seed(2)
    draft = DraftModel(config_from_json(json.loads(saved)), torch.empty(400, 64))
    inputs, positions = torch.randn(1, len(POSITIONS), 128), torch.tensor([POSITIONS])
    save_file({"queries": draft.midlayer.self_attn.q_proj(inputs)[0]}, tmp_path / "queries.safetensors")
    subprocess.run(
        [sys.executable, "-m", __name__, str(tmp_path)],
        env=os.environ | environment({"PYTHONPATH": os.pathsep.join(sys.path)}),
        check=True,
        timeout=300,
    )
    rotated = load_file(tmp_path / "rotated.safetensors")["queries"].view(len(POSITIONS), -1, HEAD).transpose(0, 1)
    torch.testing.assert_close(draft.queries(inputs, positions)[0], rotated, atol=1e-3, rtol=0.0)


if __name__ == "__main__":
    rotate_with_sglang(Path(sys.argv[1]))
