"""Imports image archives into the cluster's containerd, once per digest."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

from tests.cluster.local.sandbox import Sandbox


def digests_by_tag(tar: Path) -> dict[str, str]:
    """tag -> name of the image's configuration, which contains its digest. The digest covers the layers' digests."""
    with tarfile.open(tar) as archive:
        manifest = archive.extractfile("manifest.json")
        if manifest is None:
            raise ValueError(f"{tar} has no manifest.json: it is not a docker archive")
        images = json.load(manifest)
    return {tag: image["Config"] for image in images for tag in image["RepoTags"]}


def import_image(sandbox: Sandbox, ctr: Path, root: Path, tar: Path) -> None:
    """Import the archive `tar`, unless all of its images are imported already.

    A file below `root` records the imported images. The record is written after the import, so a crash between the two
    causes a second import but never a record without its image.
    """
    record = root / "imported.json"
    imported: dict[str, str] = json.loads(record.read_text()) if record.exists() else {}
    in_archive = digests_by_tag(tar)
    if in_archive.items() <= imported.items():
        return
    sandbox.run(ctr, "--namespace", "k8s.io", "images", "import", "--local", tar.resolve(), timeout_seconds=600)
    imported.update(in_archive)
    unfinished = record.with_suffix(".new")
    unfinished.write_text(json.dumps(imported))
    unfinished.rename(record)
