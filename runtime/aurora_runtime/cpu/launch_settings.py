"""How to start stock SGLang on a CPU: the environment and the flags that the launcher adds when there is no GPU.

Invariant: the flags that cost or save time are the same with and without speculation, so that "off" is an honest
baseline. No torch here: launchers and agents import this.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

ENGINE_SWITCH = "SGLANG_USE_CPU_ENGINE"
STANDIN = Path(__file__).resolve().parent / "standin"
DEFAULT_KV_TOKENS = 16384
PREFILL_CHUNK_TOKENS = 2048


def environment(base: Mapping[str, str] | None = None, *, threads: int = 1) -> dict[str, str]:
    """Variables to add to a server's environment, for every one of its processes.

    Args:
        base: the environment that will be extended (default: this process's); its PYTHONPATH is kept.
        threads: OpenMP threads per process; more than one pays only where the cores are otherwise idle.
    """
    inherited = (os.environ if base is None else base).get("PYTHONPATH", "")
    entries = [str(STANDIN), *(entry for entry in inherited.split(os.pathsep) if entry and entry != str(STANDIN))]
    return {
        ENGINE_SWITCH: "1",
        "PYTHONPATH": os.pathsep.join(entries),
        "OMP_NUM_THREADS": str(threads),
        # SGLang compiles a few tiny functions otherwise: a C++ compiler in every pod, and half a minute of its start.
        "TORCHDYNAMO_DISABLE": "1",
    }


def server_args(speculative: bool, *, kv_tokens: int = DEFAULT_KV_TOKENS) -> list[str]:
    """Flags for `sglang serve` on a CPU, to which the model, the port and the speculation itself are added.

    The attention backend is named for prefill and decode separately, because SGLang swaps the combined name for
    torch_native, which knows no speculation, on a CPU without AMX (sglang/srt/arg_groups/overrides.py:1302).

    Args:
        speculative: whether a draft will be used. SGLang then turns overlap scheduling off by itself and warns; both
            modes turn it off here, because on a CPU nothing overlaps and it only decodes one token too many.
        kv_tokens: size of the KV cache; left to itself SGLang takes a share of the machine's memory.
    """
    arguments = ["--device", "cpu"]
    arguments += ["--prefill-attention-backend", "intel_amx", "--decode-attention-backend", "intel_amx"]
    arguments += ["--cuda-graph-backend-decode=disabled", "--cuda-graph-backend-prefill=disabled"]
    arguments += ["--max-total-tokens", str(kv_tokens), "--chunked-prefill-size", str(PREFILL_CHUNK_TOKENS)]
    arguments += ["--disable-overlap-schedule", "--sleep-on-idle"]
    if speculative:
        arguments += ["--speculative-draft-attention-backend", "intel_amx"]
    return arguments
