"""Checks the installed SGLang without an engine: ``python -m tests.unit.engine.installed_sglang``.

Runs in a process of its own, because SGLang's import loads torch, stand-in and plugins. Reads a JSON list of command
lines, and prints a JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import torch

from aurora_runtime.cpu import cpu_plugin, wrappers
from aurora_runtime.engine import vocabulary_plugin
from aurora_runtime.engine.speculation_settings import SpeculationSettings
from aurora_runtime.errors import EngineMismatch
from aurora_runtime.serving import capture_plugin, speculation_plugin
from aurora_runtime.serving.capture.settings import CaptureSettings
from aurora_runtime.sglang_uses import Call, Hook, Name

CAPTURE = CaptureSettings(state_folder="/nowhere", lineage=1, pod="p", boot="b", traffic_key="00", tag_key="00")


def uses() -> list[Hook | Call | Name]:
    """Everything that our plugins use of SGLang."""
    speculation = SpeculationSettings(state_folder="/nowhere", boot="b", draft_steps=3)
    return [
        *cpu_plugin.CALLS,
        *cpu_plugin.engine_hooks(),
        *vocabulary_plugin.HOOKS,
        *capture_plugin.CALLS,
        *capture_plugin.request_hooks(CAPTURE),
        *capture_plugin.trace_hooks(CAPTURE),
        *speculation_plugin.CALLS,
        *speculation_plugin.worker_hooks(speculation),
    ]


def faults() -> list[str]:
    """Why SGLang does not fit, for each use."""
    found = []
    for use in uses():
        try:
            use.check()
        except EngineMismatch as error:
            found.append(str(error))
    return found


def checksums() -> list[str]:
    """The names in SGLang's checksum of a model on this machine, taken through our hook."""
    from sglang.srt.utils.weight_checker import WeightChecker

    model = torch.nn.Linear(2, 2)
    checker = object.__new__(WeightChecker)
    vars(checker).update(_get_model=lambda: model, _parallelism_info=lambda role: parallelism(role))
    answer: dict[str, Any] = wrappers.compute_checksum(WeightChecker._compute_checksum, checker, None, role="draft")
    return sorted(answer["checksums"])


def parallelism(role: str) -> Any:
    from sglang.srt.utils.weight_checker import ParallelismInfo

    fields = dict.fromkeys(ParallelismInfo.model_fields, 0)
    return ParallelismInfo(**(fields | {"role": role}))


def flags() -> list[str]:
    """Every flag of SGLang's parser, in all spellings."""
    from sglang.srt.server_args import ServerArgs

    parser = argparse.ArgumentParser()
    ServerArgs.add_cli_args(parser)
    return [flag for action in parser._actions for flag in action.option_strings]


def refusals(command_lines: Sequence[Sequence[str]]) -> list[str]:
    """What SGLang's parser says against each command line; empty where it says nothing."""
    from sglang.srt.server_args import ServerArgs

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise ValueError(message)

    parser = Parser()
    ServerArgs.add_cli_args(parser)
    found = []
    for arguments in command_lines:
        try:
            parser.parse_args(arguments)
            found.append("")
        except ValueError as error:
            found.append(str(error))
    return found


def main() -> None:
    import sglang

    answer = {
        "version": sglang.__version__,
        "faults": faults(),
        "used": [use.target for use in uses()],
        "checksums": checksums(),
        "refusals": refusals(json.load(sys.stdin)),
        "flags": flags(),
    }
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
