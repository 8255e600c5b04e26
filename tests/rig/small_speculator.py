"""The AuroraSpeculator of the demo and the end-to-end tests: SmolLM2 on two CPU cores.

Values differ from the defaults for one of two reasons. First, the machine is small: intervals are short, each process
has one thread, and CPU shares prefer a measurement over training. Second, gigabytes of Python packages are mounted from
the host instead of being copied into an image.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.cluster.images.python_environment import host_python_volumes
from tests.rig.local_image import PROGRAMS_IN_IMAGE

MODEL_PATH = "/models/smollm2-135m-instruct"


@dataclass(frozen=True)
class CpuShares:
    """CPU requests of one pod of each kind, in thousandths of a core, which become CFS shares.

    Under contention a measurement gets the most CPU. The requests fill a node of two cores. To give one part more, take
    it from another.
    """

    serving: int
    training: int
    validation: int


CPU: Final = CpuShares(serving=175, training=300, validation=1000)
"""The trainer gets at least a third of the CPU while both pods serve. The first candidate needs about 24 s of CPU time
(four passes over 6,000 positions, docs/results/costs.md). With less, the trainer falls behind the traffic, and
everything waits for the trainer."""
ONE_THREAD = [{"name": "OMP_NUM_THREADS", "value": "1"}]


def small_speculator(
    name: str,
    *,
    model: Path,
    python: Path,
    store: dict[str, Any],
    spec: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The custom resource.

    Args:
        model: Directory of the target model on this machine.
        python: Virtual environment with torch and SGLang on this machine.
        store: The value of ``spec.store``.
        spec: Values that replace the rig's own, key by key.
    """
    base: dict[str, Any] = {
        "target": {"model": MODEL_PATH},
        "store": store,
        "serving": {
            "device": "cpu",
            "replicas": 2,
            "extraArgs": ["--max-total-tokens", "16384", "--context-length", "2048"],
            "template": _template(("sglang",), model, python, CPU.serving),
        },
        "training": {
            # Few, so that the first candidate comes soon. A second one that came before the first is measured, which
            # takes seven minutes on a slow machine, would make an undecided measurement give way.
            "publishTokens": 6000,
            "passes": 4,  # a short burst of training; afterwards both cores serve
            "template": _template(("trainer",), model, python, CPU.training),
        },
        "validation": {
            "concurrencies": [1, 2],  # four requests in flight on two pods
            "tolerance": "0.1",
            "maxNewTokens": 32,
            "template": _template(("validator",), model, python, CPU.validation),
        },
        "rollout": {
            "analysis": {
                "minRequests": 8,
                "watchSeconds": 30,
            }
        },
    }
    return {
        "apiVersion": "aurora.dev/v1alpha1",
        "kind": "AuroraSpeculator",
        "metadata": {"name": name},
        "spec": _merge(base, spec or {}),
    }


def _template(containers: tuple[str, ...], model: Path, python: Path, millicores: int) -> dict[str, Any]:
    volumes, mounts = host_python_volumes(python)
    volumes = [*volumes, {"name": "model", "hostPath": {"path": str(model), "type": "Directory"}}]
    mounts = [*mounts, {"name": "model", "mountPath": MODEL_PATH, "readOnly": True}]
    path = {"name": "PATH", "value": f"{python}/bin:{PROGRAMS_IN_IMAGE}:/usr/local/bin:/usr/bin:/bin"}
    return {
        "spec": {
            "volumes": volumes,
            "containers": [
                {
                    "name": container,
                    "env": [*ONE_THREAD, path],
                    "resources": {"requests": {"cpu": f"{millicores}m", "memory": "512Mi"}},
                    "volumeMounts": mounts,
                }
                for container in containers
            ],
        }
    }


def _merge(base: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    merged = copy.deepcopy(base)
    for key, value in overrides.items():
        both_are_dicts = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both_are_dicts else value
    return merged
