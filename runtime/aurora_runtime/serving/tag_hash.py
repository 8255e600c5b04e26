"""Prints the hash of the tag on standard input, which ``training.eraseTags`` takes.

It runs in an engine's container, which has the secret of the hash. A tag on the command line would be in the list of
processes and in a shell's history, so it comes on standard input.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from aurora_protocol.pod_settings import ENGINE_KEY_FOLDER, TRAFFIC_SECRET
from aurora_runtime.request_privacy import tag_hash, tag_key, tag_number


def main() -> None:
    """Entry point of ``python -m aurora_runtime.serving.tag_hash``."""
    parser = argparse.ArgumentParser(description="Print the hash of the tag on standard input.")
    parser.add_argument("--keys", type=Path, default=Path(ENGINE_KEY_FOLDER), help="folder of the pod's keys")
    options = parser.parse_args()
    tag = sys.stdin.read().removesuffix("\n")
    if not tag:
        parser.error("give the tag on standard input")
    secret = (options.keys / TRAFFIC_SECRET).read_text().strip()
    print(tag_hash(tag_number(tag_key(secret), tag)))


if __name__ == "__main__":
    main()
