"""The agent's command line."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from aurora_protocol.agent_api import AGENT_PORT, ENGINE_PORT
from aurora_protocol.pod_settings import ADMIN_KEY, ENGINE_KEY_FOLDER, KEYS_FOLDER, SIGNING_FOLDER, STATE_FOLDER

FIND_SECONDS: Final = 30.0
"""How long a pod looks for the active draft. The operator swaps a pod that started without it."""
SHUTDOWN_SECONDS: Final = 30.0


class Command(StrEnum):
    """The command of the process: the init container stages, and the sidecar serves."""

    STAGE = "stage"
    SERVE = "serve"


@dataclass(frozen=True)
class AgentOptions:
    """The options of both commands. Each command ignores the options of the other. See :func:`parse_options`."""

    command: Command
    state: Path
    keys: Path
    engine_key: Path
    signing: Path
    port: int
    host: str
    engine_port: int
    shutdown_seconds: float
    stage_find_seconds: float


def parse_options(arguments: list[str] | None) -> AgentOptions:
    """Parse ``arguments``, or the command line of this process when ``arguments`` is None."""
    parser = argparse.ArgumentParser(
        prog="aurora-agent",
        description="The agent of an inference pod of an AuroraSpeculator.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "command",
        choices=[command.value for command in Command],
        help="stage the draft to start with, or serve as the pod's sidecar",
    )
    parser.add_argument("--state", type=Path, default=Path(STATE_FOLDER), help="folder shared with the engine")
    parser.add_argument(
        "--keys",
        type=Path,
        default=Path(KEYS_FOLDER),
        help="folder with the agent's token, and for `stage` with the speculator's key",
    )
    parser.add_argument(
        "--engine-key",
        type=Path,
        metavar="FILE",
        default=Path(ENGINE_KEY_FOLDER, ADMIN_KEY),
        help="file with the key of the engine's admin API, which `stage` makes",
    )
    parser.add_argument(
        "--signing", type=Path, default=Path(SIGNING_FOLDER), help="folder with the key that `stage` verifies with"
    )
    parser.add_argument("--port", type=int, default=AGENT_PORT, help="port of the agent's API")
    # The operator calls the agent by the pod's address.
    parser.add_argument("--host", default="0.0.0.0", help="address that the agent listens on")  # noqa: S104
    parser.add_argument("--engine-port", type=int, default=ENGINE_PORT, help="port of SGLang in this pod")
    parser.add_argument(
        "--shutdown-seconds",
        type=float,
        metavar="SECONDS",
        default=SHUTDOWN_SECONDS,
        help="longest time from SIGTERM to the exit",
    )
    parser.add_argument(
        "--stage-find-seconds",
        type=float,
        metavar="SECONDS",
        default=FIND_SECONDS,
        help="longest time that `stage` looks for a draft",
    )
    parsed = vars(parser.parse_args(arguments))
    return AgentOptions(**parsed | {"command": Command(parsed["command"])})
