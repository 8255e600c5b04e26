"""The AuroraSpeculator of the demo and the end-to-end tests: SmolLM2 on two CPU cores.

Everything that is not a default is here for one of two reasons: the machine is small (short intervals, one thread per
process, CPU shares that let a measurement win over training), or its gigabytes of Python are mounted from the host
instead of being copied into an image.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from tests.cluster.images.host_python import host_python_volumes

MODEL_PATH = "/models/smollm2-135m-instruct"
SERVING_CPU, TRAINING_CPU, VALIDATION_CPU = "300m", "50m", "1000m"
"""CPU requests become CFS shares: under contention a measurement goes first, serving next, training last."""

ONE_THREAD = [{"name": "OMP_NUM_THREADS", "value": "1"}]


def speculator(
    name: str, *, model: Path, python: Path, store: dict[str, Any], spec: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The custom resource; ``spec`` is merged over the rig's own, key by key.

    Args:
        model: Directory of the target on this machine.
        python: The virtual environment with torch and SGLang on this machine.
        store: ``spec.store``.
    """
    base: dict[str, Any] = {
        "target": {"model": MODEL_PATH},
        "store": store,
        "serving": {
            "replicas": 2,
            "extraArgs": ["--max-total-tokens", "16384", "--context-length", "2048"],
            "template": _template(("sglang",), model, python, SERVING_CPU),
        },
        "capture": {"shardSeconds": 10, "shardTokens": 4096},
        "training": {
            "publishTokens": 10000,
            "publishSeconds": 240,
            "passes": 4,  # then both cores are the pods' again
            "template": _template(("trainer",), model, python, TRAINING_CPU),
        },
        "validation": {
            "concurrencies": [1, 4],
            "tolerance": "0.1",
            "promptsPerRound": 2,
            "maxNewTokens": 64,
            "baselineMaxAgeSeconds": 0,  # how fast this machine is changes by the minute
            "template": _template(("validator",), model, python, VALIDATION_CPU),
        },
        "rollout": {"analysis": {"settleSeconds": 10, "intervalSeconds": 5, "minRequests": 10, "watchSeconds": 30}},
    }
    return {
        "apiVersion": "aurora.dev/v1alpha1",
        "kind": "AuroraSpeculator",
        "metadata": {"name": name},
        "spec": _merge(base, spec or {}),
    }


def _template(containers: tuple[str, ...], model: Path, python: Path, cpu: str) -> dict[str, Any]:
    volumes, mounts = host_python_volumes(python)
    volumes = [*volumes, {"name": "model", "hostPath": {"path": str(model), "type": "Directory"}}]
    mounts = [*mounts, {"name": "model", "mountPath": MODEL_PATH, "readOnly": True}]
    path = {"name": "PATH", "value": f"{python}/bin:/usr/local/bin:/usr/bin:/bin"}
    return {
        "spec": {
            "volumes": volumes,
            "containers": [
                {
                    "name": container,
                    "env": [*ONE_THREAD, path],
                    "resources": {"requests": {"cpu": cpu, "memory": "512Mi"}},
                    "volumeMounts": mounts,
                }
                for container in containers
            ],
        }
    }


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = copy.deepcopy(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged
