"""Writes the list of SGLang's server flags for the operator: ``python -m aurora_runtime.engine.list_sglang_flags``."""

from __future__ import annotations

import argparse
from pathlib import Path

import aurora_protocol
from aurora_protocol.sglang_flags import FILE_NAME


def render() -> str:
    """The list as text, from the parser of the installed SGLang."""
    import sglang
    from sglang.srt.server_args import ServerArgs

    parser = argparse.ArgumentParser()
    ServerArgs.add_cli_args(parser)
    flags = {option for action in parser._actions for option in action.option_strings if option.startswith("--")}
    return "\n".join([f"# Flags of `sglang serve` {sglang.__version__}.", *sorted(flags)]) + "\n"


def main() -> None:
    path = Path(aurora_protocol.__file__).with_name(FILE_NAME)
    path.write_text(render())
    print(f"wrote {path.name}")


if __name__ == "__main__":
    main()
