"""The environment variables and flags that start stock SGLang on a CPU. The launcher adds them when there is no GPU.

Invariant: every flag that costs or saves time is the same with and without speculation, so that a server without
speculation is an honest baseline. This module does not import torch, because launchers and agents import it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

ENGINE_SWITCH = "SGLANG_USE_CPU_ENGINE"
"""The variable that switches the CPU engine on, when its value is "1"."""
STANDIN = Path(__file__).resolve().parent / "standin"
"""The folder whose `sgl_kernel` package stands in for SGLang's unpublished CPU kernels."""
DEFAULT_KV_TOKENS = 16384
PREFILL_CHUNK_TOKENS = 2048
ALLOCATOR_VARIABLE = "GLIBC_TUNABLES"
ALLOCATOR = "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=34359738368:glibc.malloc.hugetlb=1"
"""Lets the main thread keep the memory that it freed, and asks for transparent huge pages.

A round allocates the logits of all its tokens: 38 MB for 192 tokens of a vocabulary of 49,152. By default glibc maps a
block of more than 32 MiB anew each time, and the kernel fills its pages with zeros in each round. The price: a process
keeps the most memory that it ever had.
"""


def environment(base: Mapping[str, str] | None = None, *, threads: int = 1) -> dict[str, str]:
    """The variables to add to a server's environment, for every one of its processes.

    Args:
        base: the environment that will be extended (default: the environment of this process). Its PYTHONPATH is kept,
            and its GLIBC_TUNABLES overrule ours.
        threads: OpenMP threads per process. More than one pays only when cores are otherwise idle.
    """
    base = os.environ if base is None else base
    inherited, tunables = base.get("PYTHONPATH", ""), base.get(ALLOCATOR_VARIABLE, "")
    entries = [str(STANDIN), *(entry for entry in inherited.split(os.pathsep) if entry and entry != str(STANDIN))]
    return {
        ENGINE_SWITCH: "1",
        "PYTHONPATH": os.pathsep.join(entries),
        "OMP_NUM_THREADS": str(threads),
        # glibc takes the last of two values.
        ALLOCATOR_VARIABLE: tunables if ALLOCATOR in tunables else ":".join(filter(None, (ALLOCATOR, tunables))),
        # Otherwise SGLang compiles a few tiny functions. Every pod would need a C++ compiler, and half a minute more to
        # start.
        "TORCHDYNAMO_DISABLE": "1",
    }


def server_args(speculative: bool, *, kv_tokens: int = DEFAULT_KV_TOKENS) -> list[str]:
    """The flags of `sglang serve` on a CPU. Callers add the model, the port and the speculation flags.

    The attention backend is set for prefill and for decode separately. On a CPU without AMX, SGLang replaces the
    combined setting by torch_native (sglang/srt/arg_groups/overrides.py:1302), which cannot speculate.

    Args:
        speculative: whether a draft will be used. SGLang then turns overlap scheduling off by itself, with a warning.
            This function turns it off in both modes: nothing overlaps on a CPU, and each request would decode one token
            too many.
        kv_tokens: size of the KV cache in tokens. Without this flag SGLang takes a share of the machine's memory.
    """
    arguments = ["--device", "cpu"]
    arguments += ["--prefill-attention-backend", "intel_amx", "--decode-attention-backend", "intel_amx"]
    arguments += ["--cuda-graph-backend-decode=disabled", "--cuda-graph-backend-prefill=disabled"]
    arguments += ["--max-total-tokens", str(kv_tokens), "--chunked-prefill-size", str(PREFILL_CHUNK_TOKENS)]
    arguments += ["--disable-overlap-schedule", "--sleep-on-idle"]
    if speculative:
        arguments += ["--speculative-draft-attention-backend", "intel_amx"]
    return arguments
