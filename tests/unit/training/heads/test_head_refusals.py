"""A head that does not fit, or that SGLang computes in another way, is refused in a sentence that says what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from aurora_runtime.errors import HeadRefused, TargetUnavailable
from aurora_runtime.training.heads.published_head import read_head
from aurora_runtime.training.target.target_model import TargetModel
from tests.unit.training import tiny
from tests.unit.training.heads import published
from tests.unit.training.heads.published import Head

Change = Callable[[dict[str, Any], dict[str, torch.Tensor]], Any]


def head_of(model: TargetModel, name: str) -> Head:
    draft, vocabulary = published.trained_draft(model)
    return published.FORMATS[name](draft, vocabulary.to_target, model)


def refused(model: TargetModel, folder: Path, name: str, change: Change) -> str:
    config, tensors = head_of(model, name)
    change(config, tensors)
    head = published.write(folder, (config, tensors))
    with pytest.raises(HeadRefused) as error:
        read_head(head, model)
    message = str(error.value)
    assert message.startswith(f"the head {folder} cannot be used: ")
    assert message.count(". ") == 1, f"one fact and one advice: {message}"
    return message


def setting(**fields: Any) -> Change:
    return lambda config, tensors: config.update(fields)


def in_layer(**fields: Any) -> Change:
    return lambda config, tensors: config["transformer_layer_config"].update(fields)


def with_tensor(name: str, *shape: int, dtype: torch.dtype = torch.bfloat16) -> Change:
    return lambda config, tensors: tensors.update({name: torch.ones(*shape, dtype=dtype)})


CONFIGS: dict[str, tuple[str, Change, str]] = {
    "architecture": ("SpecForge", setting(architectures=["LlamaForCausalLM"]), "neither that of"),
    "hidden size": ("SpecForge", setting(hidden_size=64), "its hidden_size is 64 and the target's is 32"),
    "vocabulary": ("SpecForge", setting(vocab_size=401), "its vocab_size is 401"),
    "draft vocabulary": ("SpecForge", setting(draft_vocab_size=401), "draft_vocab_size is not between"),
    "no draft vocabulary": ("SpecForge", setting(draft_vocab_size=None), "Set draft_vocab_size"),
    "layers": ("SpecForge", setting(num_hidden_layers=2), "num_hidden_layers"),
    "bias": ("SpecForge", setting(attention_bias=True), "attention has biases"),
    "norm of each state": ("SpecForge", setting(fc_norm=True), "each of the target's hidden states"),
    "normalized output": ("SpecForge", setting(norm_output=True), "norm_output"),
    "residual": ("speculators", setting(norm_before_residual=True), "norm_before_residual"),
    "unnamed residual": ("speculators", lambda config, _: config.pop("norm_before_residual"), "vLLM for true"),
    "dynamic rope": ("SpecForge", setting(rope_scaling={"type": "dynamic", "factor": 2.0}), "in the way dynamic"),
    "incomplete rope": ("SpecForge", setting(rope_scaling={"rope_type": "llama3", "factor": 8.0}), "low_freq_factor"),
    "rope without a factor": ("SpecForge", setting(rope_scaling={"rope_type": "linear"}), "no usable factor"),
    "stretched rope": (
        "SpecForge",
        setting(rope_scaling={"type": "yarn", "factor": 4.0, "attention_factor": 1.0}),
        "attention_factor 1.0, which SGLang does not read: it uses 1.1386",
    ),
    "stretch of another type": (
        "SpecForge",
        setting(rope_scaling={"type": "linear", "factor": 4.0, "attention_factor": 1.1386}),
        "by attention_factor too",
    ),
    "no stretch": (
        "SpecForge",
        setting(rope_scaling={"type": "yarn", "factor": 4.0, "mscale": 1.0, "mscale_all_dim": 0}),
        "no usable mscale_all_dim",
    ),
    "kind of rope": ("SpecForge", setting(rope_scaling={"rope_type": ["yarn"]}), "in the way"),
    "base of a scaled rope": (
        "SpecForge",
        setting(rope_scaling={"type": "linear", "factor": 2.0}, rope_theta=1),
        "no usable rope_theta",
    ),
    "two ropes": (
        "SpecForge",
        setting(rope_scaling={"type": "linear", "factor": 2.0}, rope_parameters={"rope_type": "default"}),
        "rope_scaling and rope_parameters differ",
    ),
    "two bases": (
        "SpecForge",
        setting(rope_scaling={"type": "linear", "factor": 2.0}, rope_parameters={"rope_theta": 5e5}),
        "name two bases",
    ),
    "rope of images": ("SpecForge", setting(rope_scaling={"mrope_section": [1, 1, 2]}), "scaled"),
    "partial rope": ("SpecForge", setting(rope_parameters={"partial_rotary_factor": 0.5}), "partial_rotary"),
    "activation": ("SpecForge", setting(hidden_act="gelu"), "not silu"),
    "quantization": ("SpecForge", setting(quantization_config={"quant_method": "fp8"}), "quantized"),
    "tied": ("SpecForge", setting(tie_word_embeddings=True), "Set it to false"),
    "one state": ("SGLang", setting(eagle_config={"use_aux_hidden_state": False}), "as EAGLE does"),
    "misplaced layers": ("SpecForge", setting(eagle_aux_hidden_state_layer_ids=[2, 4, 5]), "outside eagle_config"),
    "last layer": ("SGLang", setting(eagle_config={"eagle_aux_hidden_state_layer_ids": [1, 3, 7]}), "from 0 to 6"),
    "repeated layer": ("SGLang", setting(eagle_config={"eagle_aux_hidden_state_layer_ids": [1, 3, 3]}), "ascending"),
    "odd layers": ("SGLang", setting(eagle_config={"eagle_aux_hidden_state_layer_ids": "1,3,4"}), "not a list"),
    "number of states": ("SGLang", setting(num_aux_hidden_states=4), "is not 3"),
    "other speculators": ("speculators", setting(speculators_model_type="dflash"), "Use an EAGLE-3 head"),
    "layer of Qwen3": ("speculators", in_layer(model_type="qwen3"), "not a Llama layer"),
    "sliding window": ("speculators", in_layer(layer_types=["sliding_attention"]), "sliding window"),
    "kind of size": ("SpecForge", setting(num_attention_heads="4"), "num_attention_heads in config.json is not a size"),
    "true as a size": ("SpecForge", setting(intermediate_size=True), "not a size"),
    "number": ("SpecForge", setting(rope_theta=10**400), "rope_theta in config.json is not a number"),
    "impossible heads": ("SpecForge", setting(num_key_value_heads=3), "sizes that no draft can have"),
    "kind of part": ("SpecForge", setting(eagle_config=[1]), "eagle_config in config.json is not an object"),
}


@pytest.mark.parametrize(("name", "change", "reason"), CONFIGS.values(), ids=CONFIGS)
def test_a_config_of_another_computation_is_refused(
    model: TargetModel, tmp_path: Path, name: str, change: Change, reason: str
) -> None:
    assert reason in refused(model, tmp_path, name, change)


TENSORS: dict[str, tuple[str, Change, str]] = {
    "missing": ("SpecForge", lambda _, tensors: tensors.pop("norm.weight"), "it lacks norm.weight"),
    "second layer": ("SGLang", with_tensor("layers.1.mlp.up_proj.weight", 48, 32), "which no draft has"),
    "norms of queries": ("SGLang", with_tensor("layers.0.self_attn.q_norm.weight", 8), "which no draft has"),
    "bias": ("SpecForge", with_tensor("midlayer.self_attn.q_proj.bias", 32), "which no draft has"),
    "twice": ("SpecForge", with_tensor("model.norm.weight", 32), "twice"),
    "shape": ("SpecForge", with_tensor("fc.weight", 32, 64), "fc.weight has the shape [32, 64]"),
    "fp8": ("SpecForge", with_tensor("fc.weight", 32, 96, dtype=torch.uint8), "number format U8"),
    "float map": ("SpecForge", with_tensor("d2t", 300, dtype=torch.float32), "number format F32"),
    "own embedding": ("SpecForge", with_tensor("embed_tokens.weight", 400, 32), "trained with the target's embedding"),
    "not a number": ("SpecForge", lambda _, tensors: tensors["fc.weight"].fill_(float("nan")), "not finite"),
}


@pytest.mark.parametrize(("name", "change", "reason"), TENSORS.values(), ids=TENSORS)
def test_other_tensors_are_refused(model: TargetModel, tmp_path: Path, name: str, change: Change, reason: str) -> None:
    assert reason in refused(model, tmp_path, name, change)


def test_a_pickle_is_refused_and_never_read(model: TargetModel, tmp_path: Path) -> None:
    head = published.write(tmp_path, head_of(model, "SpecForge"))
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(HeadRefused):
        read_head(head, model)


@pytest.mark.parametrize(
    ("file", "named"), [("config.json", r"config\.json"), ("model.safetensors.index.json", "index")]
)
@pytest.mark.parametrize("content", [b"[" * 100_000, b"[]", b'{"a": NaN}', b'{"a": 1, "a": 2}', b" " * (2 << 20)])
def test_a_file_that_is_no_plain_object_is_refused(
    model: TargetModel, tmp_path: Path, content: bytes, file: str, named: str
) -> None:
    head = published.write(tmp_path, head_of(model, "SpecForge"))
    (tmp_path / file).write_bytes(content)
    with pytest.raises(HeadRefused, match=named):
        read_head(head, model)


def test_damaged_weights_are_refused(model: TargetModel, tmp_path: Path) -> None:
    head = published.write(tmp_path, head_of(model, "SpecForge"))
    file = tmp_path / "model.safetensors"
    whole = file.read_bytes()
    for damaged in (b"", whole[:7], whole[:100], whole[:-1], whole + b"x", b"\xff" * 64, b"\x02" + b"\0" * 7 + b"{}x"):
        file.write_bytes(damaged)
        with pytest.raises(HeadRefused, match=r"model\.safetensors"):
            read_head(head, model)


@pytest.mark.parametrize(
    "index",
    [
        {"weight_map": {"fc.weight": "../other/model.safetensors"}},
        {"weight_map": {"fc.weight": "/etc/passwd"}},
        {"weight_map": {"fc.weight": "weights.bin"}},
        {"weight_map": {}},
        {"weight_map": []},
    ],
)
def test_an_index_that_leaves_the_folder_or_names_no_weights_is_refused(
    model: TargetModel, tmp_path: Path, index: dict[str, Any]
) -> None:
    published.write(tmp_path / "other", head_of(model, "SpecForge"))
    head = published.write(tmp_path / "head", head_of(model, "SpecForge"))
    (tmp_path / "head" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(HeadRefused, match="index"):
        read_head(head, model)


def test_text_of_a_head_is_bounded_in_the_refusal(model: TargetModel, tmp_path: Path) -> None:
    long_name = "\x1b" + "x" * 100_000
    message = refused(model, tmp_path, "SpecForge", with_tensor(long_name, 1))
    assert len(message) < 1000
    assert "\x1b" not in message


def test_a_folder_without_a_head_says_what_is_missing(model: TargetModel, tmp_path: Path) -> None:
    head = published.write(tmp_path, head_of(model, "SpecForge"))
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(TargetUnavailable, match=r"has no model\.safetensors"):
        read_head(head, model)


def test_an_embedding_that_was_trained_is_refused_and_a_rounded_one_is_not(model: TargetModel, tmp_path: Path) -> None:
    head = published.write(tmp_path, head_of(model, "speculators"))
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    tensors["embed_tokens.weight"] = model.embedding.to(torch.float16)
    save_file(tensors, file)
    read_head(head, model)
    tensors["embed_tokens.weight"] = model.embedding.float()
    tensors["embed_tokens.weight"][tiny.VOCAB - 1] *= 1.05
    save_file(tensors, file)
    with pytest.raises(HeadRefused):
        read_head(head, model)
