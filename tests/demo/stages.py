"""The stages of the demo: what each does, how long it took where it was measured, and what to do when it fails.

Each measured time is that of one run, and names its source. A stage that nobody measured alone has none.

Only the standard library is imported, because start.py runs before the packages are installed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests.cluster.local.layout import state_root

ROOT = Path(__file__).resolve().parents[2]
LOGS = ROOT / "build" / "demo"
"""Output of the demo's programs, and what a failure left of the cluster's logs. `make clean` removes it."""
PYTHON = ".venv/bin/python"
CLUSTER_NAME = "demo"
"""The name of the demo's cluster."""
STOP_CLUSTER = f"{PYTHON} -m tests.cluster --name {CLUSTER_NAME} down"


@dataclass(frozen=True)
class MeasuredTime:
    """How long a stage took in one run."""

    seconds: float
    source: str
    """The file that states the figure."""
    where: str = ""
    """The machine, and what was in the cache, where the file names them."""

    def __str__(self) -> str:
        return " ".join([self.brief, self.where]).rstrip()

    @property
    def brief(self) -> str:
        """Without the machine, for a narrow column."""
        return f"{duration(self.seconds)} when measured"


@dataclass(frozen=True)
class Stage:
    """One line of the show."""

    key: str
    title: str
    advice: str
    """What to do when the stage fails."""
    log: str
    """The log to read, relative to the root of the checkout."""
    measured: MeasuredTime | None = None


_RESULTS = "docs/results/demo.md"
_EPYC, _ZEN_3 = "on the EPYC with an empty cache", "on Zen 3 with an empty cache"
_WARM = "on Zen 3 with warm caches"
_AFTER_A_FAILURE = (
    f"repeat with `KEEP=1 make demo`, which keeps the cluster, and look with `{PYTHON} -m tests.cluster --name demo "
    "kubectl get pods -A`"
)

STAGES: tuple[Stage, ...] = (
    Stage(
        "bootstrap",
        "Python installer",
        "run `make env`; Python 3.11 is needed: set PYTHON=/path/to/python3.11",
        "build/demo/bootstrap.log",
    ),
    Stage(
        "packages",
        "Python packages",
        "run `make env`, then `make demo` again",
        "build/demo/packages.log",
        MeasuredTime(102, _RESULTS, _EPYC),
    ),
    Stage(
        "prerequisites",
        "programs of this machine",
        "install what the log names, then `make demo` again",
        "build/demo/prerequisites.log",
    ),
    Stage(
        "kubernetes",
        "Kubernetes from source",
        f"run `{PYTHON} -m tests.cluster build`: it goes on from the packages compiled so far",
        "build/demo/kubernetes.log",
        MeasuredTime(539, _RESULTS, _EPYC),
    ),
    Stage(
        "model",
        "model SmolLM2-135M-Instruct",
        f"run `{PYTHON} -m tests.assets.model`, then `make demo` again",
        "build/demo/model.log",
        MeasuredTime(51, _RESULTS, _ZEN_3),
    ),
    Stage(
        "image",
        "image of this checkout",
        f"run `{PYTHON} -m tests.rig.local_image`, then `make demo` again",
        "build/demo/image.log",
        MeasuredTime(11, _RESULTS, _ZEN_3),
    ),
    Stage(
        "cluster",
        "cluster of one node",
        f"run `{PYTHON} -m tests.cluster --name demo up`; its daemons' logs stay until the next start",
        str(state_root() / "demo" / "log"),
        MeasuredTime(6, "tests/cluster/README.md"),
    ),
    Stage("install", "operator and store", _AFTER_A_FAILURE, "build/demo/cluster.log"),
    Stage(
        "serve",
        "two pods serve an untrained draft",
        _AFTER_A_FAILURE,
        "build/demo/cluster.log",
        MeasuredTime(95, _RESULTS, _WARM),
    ),
    Stage(
        "learn",
        "the draft learns from traffic",
        _AFTER_A_FAILURE,
        "build/demo/cluster.log",
        MeasuredTime(199, _RESULTS, _WARM),
    ),
    Stage(
        "measure",
        "the gate measures a candidate",
        _AFTER_A_FAILURE,
        "build/demo/cluster.log",
        MeasuredTime(534, _RESULTS, _WARM),
    ),
    Stage(
        "roll",
        "the pods swap to the new draft",
        _AFTER_A_FAILURE,
        "build/demo/cluster.log",
        MeasuredTime(157, _RESULTS, _WARM),
    ),
    Stage(
        "results",
        "evidence, store and report",
        _AFTER_A_FAILURE,
        "build/demo/cluster.log",
        MeasuredTime(19, _RESULTS, _WARM),
    ),
)


def stage(key: str) -> Stage:
    """The stage with this key."""
    return next(stage for stage in STAGES if stage.key == key)


def duration(seconds: float) -> str:
    """A duration in words, for example `8 min 59 s`."""
    whole = max(0, round(seconds))
    minutes, rest = divmod(whole, 60)
    if not minutes:
        return f"{rest} s"
    return f"{minutes} min {rest} s" if rest else f"{minutes} min"
