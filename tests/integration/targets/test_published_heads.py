"""A published head of each format, imported as version 1 and exported again, serves on the real engine.

The head is the repeating draft: on text that repeats one token, all its proposals are accepted, and with a wrong map, a
wrong layer or wrong weights none is. Everything computes in fp32, so that answers can be compared for equality.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from aurora_api.v1alpha1.draft import DraftSpec
from aurora_runtime.training import lineage
from aurora_runtime.training.heads.head_export import HeadFormat, export_head
from aurora_runtime.training.model import checkpoint
from aurora_runtime.training.target.target_model import TargetModel
from tests.assets.model import ensure_model
from tests.assets.random_draft import REPEATING_TEXT, write_repeating_draft
from tests.assets.sglang_server import Server, sglang_server
from tests.assets.trained_draft import load_small_target
from tests.unit.training import tiny
from tests.unit.training.heads import published

FP32 = ["--dtype", "float32"]
ANSWER_TOKENS = 40
STEPS = 3
pytestmark = pytest.mark.timeout(1500)


def ask(server: Server) -> tuple[list[int], float]:
    """The answer's tokens, and answer tokens per verify round (0 without speculation)."""
    sampling = {"temperature": 0, "max_new_tokens": ANSWER_TOKENS, "ignore_eos": True}
    answer = server.post("/generate", {"text": REPEATING_TEXT, "sampling_params": sampling})
    return answer["output_ids"], float(answer["meta_info"].get("spec_accept_length", 0))


@pytest.fixture(scope="module")
def target() -> TargetModel:
    return load_small_target()


@pytest.fixture(scope="module")
def plain_answer() -> list[int]:
    with sglang_server(ensure_model(), extra_args=FP32) as server:
        return ask(server)[0]


def imported_and_exported(name: str, target: TargetModel, folder: Path) -> Path:
    """The repeating draft, published in a format of others, as version 1 of a lineage, and exported for SGLang."""
    repeating = write_repeating_draft(folder / "repeating", ensure_model())
    draft, ids = checkpoint.load(repeating, target.embedding)
    config, tensors = published.FORMATS[name](draft, ids, target)
    if "t2d" not in tensors:
        # The map holds the first ids: without a mask they could be offsets too, and would be refused.
        tensors["t2d"] = published.mask(ids, draft.config.vocab_size)
    spec = DraftSpec(initial=published.write(folder / "published", (config, tensors)))
    registry, _ = tiny.memory_registry()
    lineage.open_lineage(registry, target, spec, lineage.utc_now)
    export_head(registry, lineage.HEAD_VERSION, folder / "exported", HeadFormat.SGLANG, STEPS)
    return folder / "exported"


@pytest.mark.parametrize("name", published.FORMATS)
def test_a_head_of_each_format_serves_and_changes_no_answer(
    name: str, target: TargetModel, plain_answer: list[int], tmp_path: Path
) -> None:
    head = imported_and_exported(name, target, tmp_path)
    with sglang_server(ensure_model(), head, extra_args=FP32, num_steps=STEPS) as server:
        tokens, length = ask(server)
    assert tokens == plain_answer
    assert length > STEPS, "nearly all proposals are accepted"
