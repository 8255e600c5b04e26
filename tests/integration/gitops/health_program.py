"""The program ``health/main.go``, which judges objects by the code of Argo CD and Flux.

Flux's kstatus is built as it is. Argo CD's packages for health import 1,173 others (``go list -deps``), such as clients
of Git, Redis and clouds, which take long to build and decide nothing about health. So Argo CD's own files are compiled
unchanged, and ``health/stand_ins`` has the few types that they take from three of the other packages. That leaves 101.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.cluster.command import run
from tests.rig.go_tools import built_tool, module_sources

SOURCES: Final = Path(__file__).parent / "health"
ARGO_CD: Final = {
    "github.com/argoproj/argo-cd/v3": ("resource_customizations", "util/glob", "util/lua", "util/regex"),
    "github.com/argoproj/gitops-engine": (
        "pkg/health",
        "pkg/sync/common",
        "pkg/sync/hook",
        "pkg/sync/hook/helm",
        "pkg/sync/resource",
    ),
}
"""Each module's packages that are compiled unchanged."""


@dataclass(frozen=True)
class Verdict:
    """The health of one object, in the words of each tool."""

    argo: str
    flux: str


def verdicts(check: Path, objects: Sequence[dict[str, Any]], folder: Path) -> list[Verdict]:
    """The verdict on each object.

    Args:
        check: Has the Lua check for Argo CD.
        folder: An empty folder for the program's sources.
    """
    program = built_tool(_assembled(folder))
    answers = json.loads(run(program, check, input=json.dumps(objects)))
    return [Verdict(**answer) for answer in answers]


def _assembled(folder: Path) -> Path:
    """The program's module, with the packages of Argo CD in the places to which its go.mod points."""
    module = folder / SOURCES.name
    shutil.copytree(SOURCES, module)
    (module / "stand_ins").rename(module / "argo")
    requirements = (SOURCES / "go.mod").read_text()
    for path, packages in ARGO_CD.items():
        found = re.search(rf"^\s*{re.escape(path)} (v\S+)$", requirements, re.MULTILINE)
        assert found is not None
        origin, copy = module_sources(path, found[1]), module / "argo" / path.removeprefix("github.com/argoproj/")
        shutil.copy(origin / "go.mod", copy)
        for package in packages:
            (copy / package).mkdir(parents=True)
            for file in (origin / package).glob("*.go"):
                if not file.name.endswith("_test.go"):
                    shutil.copy(file, copy / package)
    return module
