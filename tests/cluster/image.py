"""Images made without a container engine, straight from files of this machine."""

from __future__ import annotations

from pathlib import Path

from tests.cluster.archive import Layer, write_image


def pause_image(out: Path, tag: str, program: Path) -> Path:
    """The image of a pod's first container, which holds the pod's namespaces: one static program."""
    layer = Layer()
    layer.file("/pause", program)
    return write_image(out, tag, layer, entrypoint=["/pause"], user="65535")
