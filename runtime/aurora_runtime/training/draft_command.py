"""``aurora-draft``: publish a draft of this speculator, or check whether a published head fits its target.

The command runs in the trainer's container, whose ``AURORA_SETTINGS`` names the target and the store. It writes nothing
to the store.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from aurora_api.v1alpha1.draft import PublishedHead
from aurora_protocol.errors import InvalidRecord
from aurora_protocol.pod_settings import TrainerSettings
from aurora_runtime.errors import RuntimeFault
from aurora_runtime.pod_registry import PodRegistry
from aurora_runtime.training.heads.head_export import HeadFormat, export_head
from aurora_runtime.training.heads.published_head import read_head
from aurora_runtime.training.target.target_model import load_target
from aurora_store import ObjectStore, StoreConfig
from aurora_store.errors import DraftExpired, ObjectMissing, StoreError


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        settings = TrainerSettings.from_env()
        if options.command == "check":
            message = check(settings, options.model, options.revision)
        else:
            message = export(settings, open_registry(settings), options)
    except (RuntimeFault, StoreError, InvalidRecord, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(message)
    return 0


def open_registry(settings: TrainerSettings) -> PodRegistry:
    """The store of this speculator, which the command only reads."""
    return PodRegistry(ObjectStore(StoreConfig.of(settings.store)))


def check(settings: TrainerSettings, model: str, revision: str | None) -> str:
    """What a lineage that starts from the head would be. Raises :class:`HeadRefused` when it cannot start from it."""
    try:
        head = PublishedHead(model=model, revision=revision)
    except ValidationError as error:
        raise InvalidRecord("the head's name or revision is not one of a Hugging Face model, or a path") from error
    imported = read_head(head, load_target(settings.target))
    config = imported.draft.config
    return (
        f"{model} fits {settings.target.model}: it can propose {config.draft_vocab_size:,} of {config.vocab_size:,}"
        f" tokens, and reads the outputs of layers {', '.join(map(str, config.aux_layers))}."
        f" The sha256 of its weights is {imported.origin.sha256}"
    )


def export(settings: TrainerSettings, registry: PodRegistry, options: argparse.Namespace) -> str:
    """Write the version that ``options`` name, and return what was written where."""
    channel, version = registry.channel(), options.version
    if version is None:
        version = channel.active if channel is not None else registry.last_version()
    if version is None:
        raise InvalidRecord("the store has no version yet")
    digest = channel.digest_of(version) if channel is not None else None
    embedding = load_target(settings.target).embedding if options.with_embedding else None
    try:
        export_head(registry, version, options.to, options.format, settings.draft.steps, embedding, digest)
    except DraftExpired:
        raise
    except ObjectMissing as error:
        raise InvalidRecord(f"version {version} is not registered, or its files are gone") from error
    return f"version {version} is in {options.to}, in the format of {options.format.value}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="aurora-draft", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    publish = commands.add_parser("export", help="write a version of the draft into a folder that engines load")
    publish.add_argument("--to", type=Path, required=True, help="new or empty folder, such as /tmp/head")
    publish.add_argument("--version", type=int, help="version of the draft (default: the active one)")
    publish.add_argument(
        "--format",
        type=HeadFormat,
        choices=list(HeadFormat),
        default=HeadFormat.SGLANG,
        help="who loads the folder: sglang (default), or speculators, which vLLM serves",
    )
    publish.add_argument(
        "--with-embedding",
        action="store_true",
        help="store the target's embedding too, in the format of speculators; engines share the target's without it",
    )
    fits = commands.add_parser("check", help="say whether a lineage of this target can start from a published head")
    fits.add_argument("model", help="Hugging Face id of the head, or a path in this container")
    fits.add_argument("--revision", help="git branch, tag or commit (default: main)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
