"""The agent's two commands: ``stage`` (the init container) and ``serve`` (the sidecar).

Invariants of ``stage``: serving needs neither the store nor the trainer. A pod starts with the draft on its disk, or
else without one, while the store is out of reach or slow, holds an invalid record, or has no draft yet. No call of the
store outlasts its deadline. A pod starts only with a version that a record of the channel names, with its digest, and
that the operator signed. Each pod has an admin key of its own, so an engine cannot give orders to another one. All pods
of a speculator have the same traffic secret, so they hold out the same prompts.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import secrets
import signal
import sys
import threading
import time
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

import aiohttp
from aiohttp import web

from aurora_protocol.agent_api import AGENT_PORT, ENGINE_PORT
from aurora_protocol.draft_records import Lineage, Registration
from aurora_protocol.errors import InvalidRecord
from aurora_protocol.pod_settings import (
    ADMIN_KEY,
    AGENT_TOKEN,
    ENGINE_KEY_FOLDER,
    KEYS_FOLDER,
    SIGNING_FOLDER,
    STATE_FOLDER,
    TRAFFIC_SECRET,
    ServingSettings,
)
from aurora_protocol.signatures import SigningKeys, keys_in
from aurora_protocol.tag_hash import traffic_secret
from aurora_runtime.engine.sglang_client import SGLangClient, open_session
from aurora_runtime.errors import DraftRefused, RuntimeFault
from aurora_runtime.pod_registry import PodRegistry
from aurora_runtime.serving.agent.draft_cache import DraftCache, StagedDraft
from aurora_runtime.serving.agent.http_api import application
from aurora_runtime.serving.agent.lending import MeasurementLease
from aurora_runtime.serving.agent.metrics import Metrics
from aurora_runtime.serving.agent.pod_observer import PodObserver
from aurora_runtime.serving.agent.swapper import PodContext, Swapper
from aurora_runtime.serving.agent.uploader import Uploader
from aurora_runtime.serving.pod_files import PodFolder
from aurora_store import FencedObjectStore, Keys, StoreConfig
from aurora_store.deadline import total_deadline
from aurora_store.errors import ObjectMissing, StoreError

log = logging.getLogger(__name__)

EXIT_MARGIN_SECONDS: Final = 3.0
"""Time for an orderly exit. Without this limit a call that hangs in a thread would hold the process indefinitely."""
POLL_SECONDS: Final = 2.0
FETCH_SECONDS: Final = 120.0
"""How long a pod downloads the draft that it found. The operator swaps a pod that started without it."""
MIN_STORE_SECONDS: Final = 1.0
"""Even an attempt at the deadline gets this long."""


class Command(StrEnum):
    """The command of the process: the init container stages, and the sidecar serves."""

    STAGE = "stage"
    SERVE = "serve"


@dataclass(frozen=True)
class AgentOptions:
    """The options of both commands. Each command ignores the options of the other. See :func:`parse_options`."""

    command: Command
    state: Path
    keys: Path
    engine_key: Path
    signing: Path
    port: int
    host: str
    engine_port: int
    shutdown_seconds: float
    stage_find_seconds: float


def parse_options(arguments: list[str] | None) -> AgentOptions:
    """Parse ``arguments``, or the command line of this process when ``arguments`` is None."""
    parser = argparse.ArgumentParser(
        prog="aurora-agent",
        description="The agent of an inference pod of an AuroraSpeculator.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add, key = parser.add_argument, Path(ENGINE_KEY_FOLDER, ADMIN_KEY)
    add("command", type=Command, choices=list(Command), help="stage a draft to start with, or serve as the sidecar")
    add("--state", type=Path, default=Path(STATE_FOLDER), help="folder shared with the engine")
    add("--keys", type=Path, default=Path(KEYS_FOLDER), help="folder with the token, for `stage` the speculator's key")
    add("--engine-key", type=Path, default=key, help="file with the engine's admin key, which `stage` makes")
    add("--signing", type=Path, default=Path(SIGNING_FOLDER), help="folder with the key that `stage` verifies with")
    add("--port", type=int, default=AGENT_PORT, help="port of the agent's API")
    # The operator calls the agent by the pod's address.
    add("--host", default="0.0.0.0", help="address that the agent listens on")  # noqa: S104
    add("--engine-port", type=int, default=ENGINE_PORT, help="port of SGLang in this pod")
    add("--shutdown-seconds", type=float, default=30.0, help="longest time from SIGTERM to the exit")
    # The operator swaps a pod that started without the active draft.
    add("--stage-find-seconds", type=float, default=30.0, help="longest time that `stage` looks for a draft")
    return AgentOptions(**vars(parser.parse_args(arguments)))


# the init container -------------------------------------------------------------------------------------------------


def make_engine_key(path: Path) -> None:
    """Write a new random key to ``path``, unless a former run of the init container has written one.

    The key is hexadecimal. SGLang reads its configuration file as if it were a command line, and would take a key that
    begins with "-" for an option (sglang/srt/utils/server_args_config_parser.py:205): the engine would never start.
    """
    if not path.exists():
        _write_key(path, secrets.token_hex(32))


def make_traffic_secret(speculator_key: Path, path: Path) -> None:
    """Derive the traffic secret from the speculator's key, and write it to ``path``."""
    _write_key(path, traffic_secret(speculator_key.read_bytes()))


def _write_key(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.part")
    part.write_text(text)
    part.chmod(0o440)
    part.rename(path)


def find_active_draft(registry: PodRegistry) -> tuple[Lineage, Registration] | str:
    """The lineage and the version to start with. While one of them is missing, a text that names what is missing.

    Raises :class:`InvalidRecord` when the version was registered with other weights than the operator signed for, and
    :class:`UnsignedRecord` when no record of the channel is signed.
    """
    lineage = registry.lineage()
    if lineage is None:
        return "the trainer to create the lineage"
    channel = registry.signed_channel()
    if channel is None:
        return "the operator to write the channel's first record, after the trainer has registered draft version 0"
    try:
        registration = registry.registration(channel.active)
    except ObjectMissing:
        return f"the trainer to register draft version {channel.active}"
    if channel.active_digest not in (None, registration.digest):
        key = Keys.registration(channel.active)
        raise InvalidRecord(f"{key} names other weights than the channel; restore it, and find out who wrote it")
    return lineage, registration


def stage_active_draft(
    folder: PodFolder,
    registry: PodRegistry,
    *,
    find_seconds: float,
    fetch_seconds: float = FETCH_SECONDS,
    poll_seconds: float = POLL_SECONDS,
) -> StagedDraft | None:
    """Stage the active draft and make it current. While it cannot be had, leave the pod with the draft on its disk.

    Args:
        find_seconds: how long to look for the active draft.

    Returns: the draft that the engine starts with. None: there is none, so the engine starts with a placeholder.
    """
    folder.drafts.mkdir(parents=True, exist_ok=True)
    folder.crashes.unlink(missing_ok=True)
    drafts = DraftCache(folder, registry)
    deadline, logged = time.monotonic() + find_seconds, ""
    while True:
        try:
            with total_deadline(max(deadline - time.monotonic(), MIN_STORE_SECONDS)):
                found = find_active_draft(registry)
            if not isinstance(found, str):
                with total_deadline(fetch_seconds):
                    return _stage(drafts, *found)
            missing, can_come = found, True
        except (StoreError, InvalidRecord, DraftRefused) as error:
            missing, can_come = f"the store: {error}", not isinstance(error, DraftRefused)
        if time.monotonic() >= deadline or not can_come:
            on_disk = drafts.current() if drafts.has_draft else None
            start = f"with draft version {on_disk.version} from disk" if on_disk else "without a draft"
            log.warning("starting %s, because this pod has waited for %s", start, missing)
            return on_disk
        if missing != logged:
            log.info("waiting for %s", missing)
            logged = missing
        time.sleep(poll_seconds)


def _stage(drafts: DraftCache, lineage: Lineage, registration: Registration) -> StagedDraft:
    drafts.keep_lineage(lineage)
    draft = drafts.stage(registration.version, registration.digest)
    drafts.make_current(draft)
    return draft


# the sidecar ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Agent:
    """The parts of a running agent that :func:`serve` starts and stops."""

    observer: PodObserver
    swapper: Swapper
    lease: MeasurementLease
    uploader: Uploader
    application: web.Application


def _open_registry(settings: ServingSettings, keys: SigningKeys | None = None) -> PodRegistry:
    # A pod writes nothing before it serves a version that the channel names.
    return PodRegistry(FencedObjectStore(StoreConfig.of(settings.store), expects_channel=True), keys)


def build_agent(settings: ServingSettings, options: AgentOptions, session: aiohttp.ClientSession) -> Agent:
    """The agent of one pod. The agent calls the engine over ``session``."""
    folder, registry = PodFolder(options.state), _open_registry(settings)
    metrics = Metrics()
    admin_key = options.engine_key.read_text().strip()
    token_file = options.keys / AGENT_TOKEN
    drafts = DraftCache(folder, registry)

    def read_token() -> str:
        return token_file.read_text().strip()

    pod = PodContext(
        name=os.environ.get("POD_NAME", "pod"),
        folder=folder,
        engine=SGLangClient(session, f"http://127.0.0.1:{options.engine_port}", admin_key),
        drafts=drafts,
    )
    swapper = Swapper(pod, on_finished=metrics.record_swap)
    lease = MeasurementLease(pod, swapper, read_token=read_token)
    uploader = Uploader(folder.spool, registry, lambda: drafts.has_draft)
    observer = PodObserver(pod, swapper, uploader, lease)
    api = application(observer, swapper, lease, metrics, read_token)
    return Agent(observer, swapper, lease, uploader, api)


def _exit_within(seconds: float) -> None:
    """End the process after ``seconds``, whatever its threads do."""
    deadline = threading.Timer(seconds, os._exit, (1,))
    deadline.daemon = True
    deadline.start()


async def serve(settings: ServingSettings, options: AgentOptions) -> None:
    """Serve until SIGTERM. Then finish a running swap and the uploads, within ``options.shutdown_seconds``.

    When a part of the agent fails, the agent ends with that error, and its supervisor starts the agent again.
    """
    shutdown = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, shutdown.set)
    async with open_session() as session:
        agent = build_agent(settings, options, session)
        runner = web.AppRunner(agent.application, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, options.host, options.port).start()
        tasks = [asyncio.create_task(part.run()) for part in (agent.uploader, agent.lease, agent.observer)]
        log.info("the agent listens on port %d", options.port)
        try:
            await _run_until_shutdown(agent, options, shutdown, tasks)
        finally:
            agent.uploader.stop()
            # asyncio joins the thread of an upload, which a slow store may hold for minutes.
            _exit_within(EXIT_MARGIN_SECONDS)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await runner.cleanup()


async def _run_until_shutdown(
    agent: Agent, options: AgentOptions, shutdown: asyncio.Event, tasks: list[asyncio.Task[None]]
) -> None:
    """Wait for the shutdown or for the end of a task. Then finish the uploads and a running swap."""
    signalled = asyncio.create_task(shutdown.wait())
    await asyncio.wait({signalled, *tasks}, return_when=asyncio.FIRST_COMPLETED)
    _exit_within(options.shutdown_seconds + EXIT_MARGIN_SECONDS)
    if signalled.done():
        uploads = agent.uploader.finish(options.shutdown_seconds, lambda: bool(PodFolder(options.state).ready_boot()))
        finishing = asyncio.create_task(uploads)
        await asyncio.wait({finishing, *tasks}, return_when=asyncio.FIRST_COMPLETED)
        finishing.cancel()
    await agent.swapper.wait()
    await asyncio.gather(*(task for task in tasks if task.done()))  # raises the error of a task that ended


def main(arguments: list[str] | None = None) -> int:
    options = parse_options(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    settings = ServingSettings.from_env()
    try:
        if options.command is Command.STAGE:
            # The first process of a container ignores a signal that it does not handle.
            signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
            make_engine_key(options.engine_key)
            make_traffic_secret(options.keys / ADMIN_KEY, options.engine_key.with_name(TRAFFIC_SECRET))
            registry = _open_registry(settings, keys_in(options.signing))
            stage_active_draft(PodFolder(options.state), registry, find_seconds=options.stage_find_seconds)
        else:
            asyncio.run(serve(settings, options))
    except (RuntimeFault, StoreError, OSError) as error:
        log.error("%s", error)  # noqa: TRY400 - the message is the whole story
        return 1
    return 0
