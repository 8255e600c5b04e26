"""The SGLang plugin that logs the controller's rounds, and the engines that load it.

SGLang finds plugins by the entry points of installed packages. Here a folder with an entry point, and nothing else, is
put on the path of the engines that shall log. Invariant: an engine without the controller is started as without a log.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import tests
from tests.bench.served.round_log import RoundLog

from aurora_runtime.engine.server_process import EngineSpec
from aurora_runtime.engine.speculation_flags import SPECULATION_VARIABLE, Eagle3, Ngram
from aurora_runtime.engine.speculation_settings import SpeculationSettings
from aurora_runtime.sglang_uses import check_all, register

PLUGIN: Final = "aurora_round_log"
FOLDER_VARIABLE: Final = "AURORA_ROUND_LOG"
"""The variable with the folder of the log's files."""
_CHECKOUT: Final = Path(next(iter(tests.__path__))).parent


def install() -> None:
    """Register the log's hooks in this process.

    Raises:
        EngineMismatch: the controller has no functions that the log knows.
    """
    settings = SpeculationSettings.from_json(os.environ[SPECULATION_VARIABLE])
    file = log_file(Path(os.environ[FOLDER_VARIABLE]), Path(settings.state_folder).name)
    hooks = RoundLog(file, settings.arms).hooks()
    check_all(hooks)
    register(hooks)


def log_file(folder: Path, server: str) -> Path:
    """The file with the rounds of a server."""
    return folder / f"{server}.jsonl"


@dataclass(frozen=True)
class LoggingEngineSpec(EngineSpec):
    """Engines that log the rounds of their controller.

    Attributes:
        log_folder: for the files, one per server with a controller, and for the plugin's entry point.
    """

    log_folder: Path = Path()

    @classmethod
    def of(cls, spec: EngineSpec, log_folder: Path) -> LoggingEngineSpec:
        """``spec`` with a log. Creates the folder, and deletes the logs of an earlier run from it."""
        package = log_folder / f"{PLUGIN}-0.dist-info"
        package.mkdir(parents=True, exist_ok=True)
        for earlier in log_folder.glob("*.jsonl"):
            earlier.unlink()
        (package / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {PLUGIN}\nVersion: 0\n")
        (package / "entry_points.txt").write_text(f"[sglang.srt.plugins]\n{PLUGIN} = {__name__}:{install.__name__}\n")
        fields = {field.name: getattr(spec, field.name) for field in dataclasses.fields(spec)}
        return cls(**fields, log_folder=log_folder.absolute())

    def environment(self, base: Mapping[str, str], speculation: Eagle3 | Ngram | None = None) -> dict[str, str]:
        variables = super().environment(base, speculation)
        if isinstance(speculation, Eagle3) and speculation.controller is not None:
            path = (variables.get("PYTHONPATH", ""), str(self.log_folder), str(_CHECKOUT))
            variables |= {
                "SGLANG_PLUGINS": f"{variables['SGLANG_PLUGINS']},{PLUGIN}",
                "PYTHONPATH": os.pathsep.join(filter(None, path)),
                FOLDER_VARIABLE: str(self.log_folder),
            }
        return variables
