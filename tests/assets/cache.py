"""The project's cache: files that outlive a checkout and that several checkouts share.

It holds Python environments, model weights, recorded traces, images, Go modules and the local cluster's binaries.
"""

from __future__ import annotations

import os
from pathlib import Path


def cache_root() -> Path:
    """`$AURORA_CACHE`, else `$XDG_CACHE_HOME/aurora`, else `~/.cache/aurora`."""
    explicit = os.environ.get("AURORA_CACHE")
    if explicit:
        return Path(explicit)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "aurora"
