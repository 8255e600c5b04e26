"""``make audit``: ``python -m tests.supply_chain sbom|audit --tools FOLDER``.

``sbom`` writes to ``build/sbom`` a bill of materials (CycloneDX) of each image's locked Python packages, and one report
of their licences. The same locks give the same files. The exit code is 1 when an image holds a licence that the policy
does not allow. ``audit`` looks the locked packages up in the registry's list of known vulnerabilities.

Both ask the registry, so no test and no other target runs them. Only metadata of wheels is read, so nothing of a
package runs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name

from tests.supply_chain.licenses import Policy
from tests.supply_chain.locks import REQUIREMENTS, ROOT, LockedPackage, locked_packages

OUTPUT = ROOT / "build" / "sbom"
AUDITED = ("bootstrap", "build", "operator", "agent", "runtime", "cpu", "plugin", "supply-chain")


def metadata_of(packages: Iterable[LockedPackage], tools: Path) -> dict[str, Mapping[str, Any]]:
    """Metadata of each package by name. Raises ValueError when it belongs to a file that is not locked."""
    locked = {package.name: package for package in packages}
    with tempfile.TemporaryDirectory() as folder:
        wanted, report = Path(folder) / "wanted.txt", Path(folder) / "report.json"
        # With hashes pip would download every file: gigabytes. So the hashes are compared below.
        wanted.write_text("\n".join(f"{package.name}=={package.version}" for package in locked.values()))
        options = ["--dry-run", "--no-deps", "--ignore-installed", "--only-binary", ":all:", "--report", str(report)]
        subprocess.run([str(tools / "pip"), "install", "--quiet", *options, "-r", str(wanted)], check=True)
        found = json.loads(report.read_text())["install"]
    return dict(checked_metadata(locked, entry) for entry in found)


def checked_metadata(locked: Mapping[str, LockedPackage], entry: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """Name and metadata of one entry of pip's report. Raises ValueError when its file is not locked."""
    name = canonicalize_name(str(entry["metadata"]["name"]))
    if entry["download_info"]["archive_info"]["hashes"]["sha256"] not in locked[name].hashes:
        raise ValueError(f"{name}: the registry offers a file whose hash is not in the lock file; run make lock")
    return name, entry["metadata"]


def bill_of_materials(lock: Path, licenses: Mapping[str, str], tools: Path) -> str:
    """The CycloneDX document of a lock file, with the licence of each package."""
    options = ["--output-reproducible", "--output-format", "JSON", "--pyproject", str(ROOT / "pyproject.toml")]
    # The tool warns that the root has no dependencies: a lock file does not say who needs whom.
    command = [str(tools / "python"), "-W", "ignore", "-m", "cyclonedx_py", "requirements", *options, str(lock)]
    written = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    document = json.loads(written)
    for component in document["components"]:
        component["licenses"] = [{"expression": licenses[canonicalize_name(component["name"])]}]
    return json.dumps(document, indent=1, sort_keys=True) + "\n"


def license_report(images: Mapping[str, Mapping[LockedPackage, str]]) -> str:
    """One line for each package: name, version, licence and the images that hold it, separated by tabs."""
    holders: dict[tuple[str, str, str], list[str]] = {}
    for image, packages in images.items():
        for package, license_ in packages.items():
            holders.setdefault((package.name, package.version, license_), []).append(image)
    rows = ["\t".join((*key, ",".join(holders[key]))) for key in sorted(holders)]
    return "\n".join(("package\tversion\tlicence\timages", *rows)) + "\n"


def sbom(tools: Path) -> int:
    """Write all files. Returns 1 when a licence is not allowed."""
    policy = Policy.read(REQUIREMENTS / "licenses.toml")
    OUTPUT.mkdir(parents=True, exist_ok=True)
    images, refused = {}, []
    for image in policy.allowed:
        lock = REQUIREMENTS / f"{image}.txt"
        packages = locked_packages(lock)
        metadata = metadata_of(packages, tools)
        images[image] = {package: policy.license_of(metadata[package.name]) for package in packages}
        licenses = {package.name: license_ for package, license_ in images[image].items()}
        (OUTPUT / f"{image}.cdx.json").write_text(bill_of_materials(lock, licenses, tools))
        refused += [
            f"{image}: {package.name} {package.version}: {license_}"
            for package, license_ in images[image].items()
            if not policy.allows(image, license_)
        ]
    (OUTPUT / "licenses.tsv").write_text(license_report(images))
    print(f"wrote {OUTPUT.relative_to(ROOT)}: {', '.join(sorted(path.name for path in OUTPUT.iterdir()))}")
    for line in refused:
        print(f"not allowed by requirements/licenses.toml: {line}", file=sys.stderr)
    return 1 if refused else 0


def audit(tools: Path) -> int:
    """Ask for known vulnerabilities. Returns 1 when there is one, or when a package is not known to the service."""
    options = ["--strict", "--disable-pip", "--require-hashes", "--progress-spinner", "off"]
    locks = [part for lock in AUDITED for part in ("-r", str(REQUIREMENTS / f"{lock}.txt"))]
    return subprocess.run([str(tools / "pip-audit"), *options, *locks], check=False).returncode


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.supply_chain", description="Look at what the images install.")
    parser.add_argument("command", choices=("sbom", "audit"))
    parser.add_argument("--tools", type=Path, required=True, help="folder of pip, pip-audit and the SBOM's generator")
    options = parser.parse_args()
    return {"sbom": sbom, "audit": audit}[options.command](options.tools)


if __name__ == "__main__":
    sys.exit(main())
