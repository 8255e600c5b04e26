"""Writes the list of SGLang's options for the operator: ``python -m aurora_runtime.engine.list_sglang_flags``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import aurora_protocol
from aurora_protocol.sglang_flags import FILE_NAME, Option, OptionList, Values, ValueType

_COUNTS = {"?": Values.OPTIONAL, "*": Values.ANY, "+": Values.SOME}
_TYPES = {int: ValueType.INTEGER, float: ValueType.NUMBER, json.loads: ValueType.JSON}
"""The types that the operator checks too. SGLang's own types, such as ``8k`` for a length, are text to it."""


def installed_options() -> OptionList:
    """The list, from the parser of the installed SGLang."""
    import sglang
    from sglang.srt.server_args import ServerArgs

    parser = argparse.ArgumentParser()
    ServerArgs.add_cli_args(parser)
    options = [_option(action) for action in parser._actions if action.option_strings]
    return OptionList(sglang=sglang.__version__, options=tuple(sorted(options, key=lambda option: option.flags)))


def _option(action: argparse.Action) -> Option:
    values = Values.NONE if action.nargs == 0 else _COUNTS.get(str(action.nargs), Values.ONE)
    value_type = ValueType.TEXT if action.type is None else _TYPES.get(action.type, ValueType.TEXT)
    choices = tuple(sorted(action.choices or (), key=str))  # SGLang has some of them in a set
    return Option(flags=tuple(action.option_strings), values=values, type=value_type, choices=choices)


def render() -> str:
    """The list as text, one option a line."""
    listed = installed_options()
    lines = [json.dumps(option.model_dump(mode="json", exclude_defaults=True)) for option in listed.options]
    joined = ",\n".join(lines)
    return f'{{"sglang": "{listed.sglang}", "options": [\n{joined}\n]}}\n'


def main() -> None:
    path = Path(aurora_protocol.__file__).with_name(FILE_NAME)
    path.write_text(render())
    print(f"wrote {path.name}")


if __name__ == "__main__":
    main()
