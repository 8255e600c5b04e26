"""SGLang's own draft model on tensor-parallel ranks, without a server.

The arguments are numbers of ranks, each followed by a folder. Each rank of each folder is a process. It loads the draft
in ``FOLDER/draft`` as SGLang does at its start, and then every file ``FOLDER/*.safetensors`` with our loader, in order
of names. Prints a JSON list for each folder, with a list for each rank, with one :class:`Load` for each file.

The ranks are forked from a process that has imported SGLang, because the imports take longer than all else.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file
from sglang.srt.configs.model_config import ModelConfig
from sglang.srt.distributed import init_distributed_environment, initialize_model_parallel
from sglang.srt.distributed.device_communicators import pynccl
from sglang.srt.layers.dp_attention import initialize_dp_attention
from sglang.srt.models.llama_eagle3 import LlamaForCausalLMEagle3
from sglang.srt.runtime_context import SpawnRanks, publish
from sglang.srt.server_args import prepare_server_args

from aurora_api.v1alpha1.draft import DraftSpec
from aurora_runtime.cpu.launch_settings import server_args
from aurora_runtime.engine import vocabulary_plugin
from aurora_runtime.engine.draft_update import DIGEST_TENSOR, PATH_TENSOR
from aurora_runtime.engine.server_process import free_port
from aurora_runtime.engine.speculation_flags import Eagle3
from aurora_runtime.engine.weight_loader import load_draft
from aurora_store.objects import sha256_file


@dataclass(frozen=True)
class Load:
    """What a load did.

    Attributes:
        reason: why it failed, or empty.
        changed: whether any tensor of the model has another value than before.
        whole: whether every parameter has the value that SGLang's own start with the file gives it.
    """

    file: str
    digest: str
    reason: str
    changed: bool
    whole: bool


def build_model(rank: int, ranks: int, port: int, folder: Path) -> Any:
    """The model of a draft worker, with the weights that SGLang reads at its start and with the shared map."""
    flags = ["--model-path", str(folder / "target"), *server_args(True), "--tp-size", str(ranks), "--dtype", "float32"]
    arguments = prepare_server_args([*flags, *Eagle3(folder / "draft", 0, DraftSpec()).arguments()])
    publish(arguments, role="scheduler", ranks=SpawnRanks(world_rank=rank))
    # SGLang asks for CUDA's communicator even on a CPU without AMX, although nothing communicates here.
    pynccl.PyNcclCommunicator = lambda *_, **__: SimpleNamespace(disabled=True, available=False)
    address = f"tcp://127.0.0.1:{port}"
    init_distributed_environment(
        backend="gloo", world_size=ranks, rank=rank, local_rank=rank, distributed_init_method=address
    )
    initialize_model_parallel()
    initialize_dp_attention(server_args=arguments)
    config = ModelConfig.from_server_args(arguments, model_path=str(folder / "draft"), is_draft_model=True)
    torch.set_default_dtype(torch.float32)
    model = LlamaForCausalLMEagle3(config.hf_config)
    start(model, folder / "draft" / "model.safetensors")
    worker = SimpleNamespace(draft_runner=SimpleNamespace(model=model), hot_token_id=model.hot_token_id.clone())
    vocabulary_plugin.share_map(None, worker)
    return model


def start(model: Any, file: Path) -> None:
    """Load as SGLang does at its start."""
    for parameter in model.parameters():
        parameter.data.fill_(float("nan"))
    model.load_weights(list(load_file(file).items()))


def load(model: Any, file: Path) -> Load:
    before = values(model)
    parts = {PATH_TENSOR: str(file).encode(), DIGEST_TENSOR: bytes.fromhex(sha256_file(file))}
    with torch.inference_mode():  # as SGLang's scheduler
        load_draft(model, [(name, torch.tensor(list(data), dtype=torch.uint8)) for name, data in parts.items()])
    failed = vocabulary_plugin.answer_failure((True, ""), SimpleNamespace(get_model=lambda: model))
    after, digest, whole = values(model), vocabulary_plugin.read_digest(model), False
    if failed is None:
        start(model, file)
        whole = not differ(after, values(model))
    return Load(file.stem, digest, failed[1] if failed else "", changed=differ(before, after), whole=whole)


def values(model: Any) -> dict[str, torch.Tensor]:
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return {name: tensor.detach().clone() for name, tensor in tensors if "aurora_draft" not in name}


def differ(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    same = (torch.equal(one[name], tensor) for name, tensor in other.items() if "embed_tokens" not in name)
    return not all(same)


def loads_of(rank: int, ranks: int, port: int, folder: Path) -> list[dict[str, Any]]:
    """The loads of one rank. Runs in the rank's own process."""
    model = build_model(rank, ranks, port, folder)
    return [dataclasses.asdict(load(model, file)) for file in sorted(folder.glob("*.safetensors"))]


def loads_of_ranks(ranks: int, folder: Path) -> list[list[dict[str, Any]]]:
    """The loads of all ranks, which run at the same time."""
    same = (itertools.repeat(one) for one in (ranks, free_port(), folder))
    with ProcessPoolExecutor(ranks, multiprocessing.get_context("fork")) as processes:
        return list(processes.map(loads_of, range(ranks), *same))


def main(arguments: list[str]) -> None:
    ranks, folders = map(int, arguments[::2]), map(Path, arguments[1::2])
    print(json.dumps([loads_of_ranks(*one) for one in zip(ranks, folders, strict=True)]))


if __name__ == "__main__":
    main(sys.argv[1:])
