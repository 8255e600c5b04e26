"""``python -m tests.generated [--check]``."""

from __future__ import annotations

import argparse
import sys

from tests.generated import dashboard, pages
from tests.generated.generated_file import GeneratedFile

FILES = (
    GeneratedFile(pages.CONDITIONS, pages.conditions_page),
    GeneratedFile(pages.METRICS, pages.metrics_page),
    GeneratedFile(pages.ROLLOUT, pages.rollout_page),
    GeneratedFile(dashboard.FILE, dashboard.render),
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.generated", description="Write the generated files.")
    parser.add_argument("--check", action="store_true", help="write nothing, and fail when a file is not current")
    check = parser.parse_args().check
    stale = [file for file in FILES if not file.is_current]
    for file in stale:
        if check:
            print(f"{file.path} is not current: run python -m tests.generated", file=sys.stderr)
        else:
            file.write()
            print(f"wrote {file.path}")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
