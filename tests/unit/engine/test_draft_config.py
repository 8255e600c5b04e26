"""A draft's configuration follows from its lineage: another one never reaches an engine."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aurora_protocol.draft_records import Lineage
from aurora_runtime.engine.draft_config import check_draft_config, config_from_json, config_json, lineage_config
from aurora_runtime.errors import DraftRefused
from tests.unit.fakes import SIZES, lineage

OWN: dict[str, Any] = config_json(lineage_config(lineage()))


def refusal(tmp_path: Path, data: bytes) -> str:
    """Why the configuration is refused; empty when it passes."""
    file = tmp_path / "config.json"
    file.write_bytes(data)
    try:
        check_draft_config(file, lineage())
    except DraftRefused as error:
        return str(error)
    return ""


def test_the_lineages_own_configuration_passes(tmp_path: Path) -> None:
    assert refusal(tmp_path, json.dumps(OWN, indent=1).encode()) == ""


@pytest.mark.parametrize(
    "change",
    [
        {"auto_map": {"AutoConfig": "modeling_evil.Config"}},
        {"architectures": ["Evil"]},
        {"model_type": "evil"},
        {"quantization_config": {"quant_method": "fp8"}},
        {"hidden_size": 4},
        {"num_hidden_layers": 2},
        {"tie_word_embeddings": 0},
        {"tie_word_embeddings": True},
        {"draft_vocab_size": 8},
        {"intermediate_size": 8},
        {"num_attention_heads": 2},
        {"head_dim": 1 << 40},
        {"rms_norm_eps": "nan"},
        {"rms_norm_eps": 0},
        {"rms_norm_eps": 1e-6},
        {"rope_theta": 2e4},
        {"max_position_embeddings": -1},
        {"max_position_embeddings": 65},
        {"rope_parameters": {"rope_theta": 1e4, "rope_type": "dynamic"}},
        {"eagle_config": {"eagle_aux_hidden_state_layer_ids": [1, 2, 2], "use_aux_hidden_state": True}},
        {"eagle_config": {"eagle_aux_hidden_state_layer_ids": [1, 2, 3], "use_aux_hidden_state": 1}},
    ],
    ids=str,
)
def test_another_value_or_another_field_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    assert "config.json" in refusal(tmp_path, json.dumps(OWN | change).encode())


@pytest.mark.parametrize("field", OWN)
def test_a_missing_field_is_refused(tmp_path: Path, field: str) -> None:
    assert field in refusal(tmp_path, json.dumps({k: v for k, v in OWN.items() if k != field}).encode())


def twice(text: str) -> str:
    return text.replace("{", '{"model_type": "llama", ', 1)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text[:-1],
        lambda text: "[" * 100_000,
        lambda text: "[]",
        lambda text: "",
        lambda text: "\xff",
        lambda text: text.replace("1e-05", "NaN"),
        twice,
    ],
    ids=["broken", "brackets", "list", "empty", "no text", "NaN", "a field twice"],
)
def test_what_is_no_plain_json_object_is_refused(tmp_path: Path, spoil: Callable[[str], str]) -> None:
    assert "config.json" in refusal(tmp_path, spoil(json.dumps(OWN)).encode("latin-1"))


def test_an_error_names_fields_and_no_values(tmp_path: Path) -> None:
    told = refusal(tmp_path, json.dumps(OWN | {f"x{n}": "secret" for n in range(1000)}).encode())
    assert len(told) < 500
    assert "secret" not in told


def test_the_configuration_of_a_draft_reads_back_as_it_was_written() -> None:
    assert config_from_json(OWN) == lineage_config(lineage())
    with pytest.raises(DraftRefused, match="lacks eagle_config"):
        config_from_json({field: value for field, value in OWN.items() if field != "eagle_config"})


def test_a_lineage_keeps_the_name_of_its_sizes_in_the_store() -> None:
    """Parts of other versions read and write this name."""
    stored = json.loads(lineage().to_json())
    assert stored["draft"]["heads"] == SIZES.heads
    assert "draftSizes" not in stored
    assert Lineage.from_json(json.dumps(stored)).draft_sizes == SIZES
