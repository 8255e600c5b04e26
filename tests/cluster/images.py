"""Importing image archives into the cluster's containerd, once per digest."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

from tests.cluster.sandbox import Sandbox


def identity(tar: Path) -> dict[str, str]:
    """tag -> digest of the image's configuration, which covers its layers' digests too."""
    with tarfile.open(tar) as archive:
        manifest = archive.extractfile("manifest.json")
        if manifest is None:
            raise ValueError(f"{tar} is not a docker archive: it has no manifest.json")
        images = json.load(manifest)
    return {tag: image["Config"] for image in images for tag in image["RepoTags"]}


def import_image(sandbox: Sandbox, ctr: Path, root: Path, tar: Path) -> None:
    """Import `tar` unless every image in it is there already. The record is written after the import: a record without
    its image cannot exist, an image without its record is imported again."""
    record = root / "imported.json"
    imported: dict[str, str] = json.loads(record.read_text()) if record.exists() else {}
    wanted = identity(tar)
    if wanted.items() <= imported.items():
        return
    sandbox.run(ctr, "--namespace", "k8s.io", "images", "import", "--local", tar.resolve(), timeout=600)
    imported.update(wanted)
    unfinished = record.with_suffix(".new")
    unfinished.write_text(json.dumps(imported))
    unfinished.rename(record)
