"""The krew manifest of one archive, filled in from the template in ``docs/samples/krew``."""

from __future__ import annotations

import platform
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

ROOT: Final = Path(__file__).parents[2]
TEMPLATE: Final = ROOT / "docs/samples/krew/aurora.yaml"
_ARCHITECTURES: Final = {"x86_64": "amd64", "aarch64": "arm64"}


class UnknownPlatform(Exception):
    """The template has no entry of a platform."""


@dataclass(frozen=True)
class Platform:
    """An operating system and an architecture, by Go's names, which krew uses."""

    os: str
    arch: str

    @classmethod
    def of_this_machine(cls) -> Platform:
        machine = platform.machine()
        return cls(platform.system().lower(), _ARCHITECTURES.get(machine, machine))


def version() -> str:
    """The package's version, as krew writes versions."""
    return "v" + str(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"])


def archive_name(of: Platform) -> str:
    """The name with which the manifest's URI ends. Raises :class:`UnknownPlatform`."""
    (entry,) = _filled(of, "")["spec"]["platforms"]
    return str(entry["uri"]).rpartition("/")[2]


def manifest(of: Platform, sha256: str) -> str:
    """The manifest of one platform's archive. Raises :class:`UnknownPlatform`."""
    return yaml.dump(_filled(of, sha256), Dumper=_Dumper, sort_keys=False, width=120)


class _Dumper(yaml.SafeDumper):
    """Writes a text of several lines as lines."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def _filled(of: Platform, sha256: str) -> Any:
    found = yaml.safe_load(TEMPLATE.read_text().replace("VERSION", version()))
    spec = found["spec"]
    wanted = {"os": of.os, "arch": of.arch}
    spec["platforms"] = [one for one in spec["platforms"] if one["selector"]["matchLabels"] == wanted]
    if not spec["platforms"]:
        raise UnknownPlatform(f"{TEMPLATE.relative_to(ROOT)} has no platform {of.os}/{of.arch}: add it there")
    for entry in spec["platforms"]:
        entry["sha256"] = sha256
    return found
