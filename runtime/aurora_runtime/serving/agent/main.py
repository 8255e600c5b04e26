"""The agent's two commands: ``stage`` (the init container) and ``serve`` (the sidecar)."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Final

from aiohttp import web

from aurora_protocol.agent_api import AGENT_PORT, ENGINE_PORT
from aurora_protocol.pod_settings import ADMIN_KEY, AGENT_TOKEN, KEYS_FOLDER, STATE_FOLDER, ServingSettings
from aurora_runtime.engine.sglang_client import SGLangClient, session
from aurora_runtime.errors import RuntimeFault
from aurora_runtime.serving.agent.draft_cache import DraftCache, stage_start
from aurora_runtime.serving.agent.http_api import application
from aurora_runtime.serving.agent.measurement import MeasurementLease
from aurora_runtime.serving.agent.metrics import Metrics
from aurora_runtime.serving.agent.pod_state import Pod
from aurora_runtime.serving.agent.swapper import Swapper
from aurora_runtime.serving.agent.uploader import Uploader
from aurora_runtime.serving.pod_files import PodFolder
from aurora_store import ObjectStore, Registry, StoreConfig
from aurora_store.errors import StoreError

log = logging.getLogger(__name__)

STAGE_TIMEOUT_S: Final = 3600.0
STOP_WITHIN_S: Final = 30.0
SETTLE_S: Final = 2.0
"""Where agent and launcher are told to end at the same moment, they are not in the same instant."""
SPARE_S: Final = 3.0
"""To leave in order: a call that hangs in a thread would hold the process for as long as it likes."""


def _registry(settings: ServingSettings) -> Registry:
    return Registry(ObjectStore(StoreConfig.of(settings.store)))


def _stop(stopping: asyncio.Event, within: float) -> None:
    stopping.set()
    _leave_within(within + SPARE_S)


def _leave_within(seconds: float) -> None:
    deadline = threading.Timer(seconds, os._exit, (1,))
    deadline.daemon = True
    deadline.start()


async def serve(settings: ServingSettings, options: argparse.Namespace) -> None:
    """Serve until SIGTERM; then finish a swap in progress and the uploads, within ``stop_within`` seconds of it.

    Ends, to be restarted, when a part of it does.
    """
    folder = PodFolder(options.state)
    registry = _registry(settings)
    drafts = DraftCache(folder, registry)
    uploader = Uploader(folder.spool, registry)
    metrics = Metrics()
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    within: float = options.stop_within
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _stop, stopping, within)
    key = (options.keys / ADMIN_KEY).read_text().strip()
    token = (options.keys / AGENT_TOKEN).read_text().strip()
    async with session() as http:
        engine = SGLangClient(http, f"http://127.0.0.1:{options.engine_port}", key)
        swapper = Swapper(engine, drafts, folder, finished=metrics.swap_finished)
        name = os.environ.get("POD_NAME", "pod")
        tokens = settings.draft.tokens_per_round
        measuring = MeasurementLease(engine, swapper, drafts, folder, draft_tokens=tokens, token=token)
        pod = Pod(name, folder, engine, drafts, swapper, uploader, measuring, draft_tokens=tokens)
        runner = web.AppRunner(application(pod, swapper, measuring, metrics, token), access_log=None)
        await runner.setup()
        await web.TCPSite(runner, options.host, options.port).start()
        tasks = [asyncio.create_task(uploader.run()), asyncio.create_task(measuring.run())]
        log.info("the agent listens on port %d", options.port)
        try:
            told = asyncio.create_task(stopping.wait())
            await asyncio.wait({told, *tasks}, return_when=asyncio.FIRST_COMPLETED)
            if told.done():
                serving, ending = lambda: bool(pod.boot()), folder.ending.exists
                last = uploader.finish(within, settle=options.settle, serving=serving, ending=ending)
                finishing = asyncio.create_task(last)
                await asyncio.wait({finishing, *tasks}, return_when=asyncio.FIRST_COMPLETED)
                finishing.cancel()
            else:
                _leave_within(within + SPARE_S)
            await swapper.wait()
            await asyncio.gather(*(task for task in tasks if task.done()))  # raises what ended it
        finally:
            uploader.enough()
            _leave_within(SPARE_S)  # asyncio joins the thread of an upload, and a slow store may hold that for minutes
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await runner.cleanup()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="The agent of an inference pod of an AuroraSpeculator.")
    parser.add_argument("command", choices=["stage", "serve"])
    parser.add_argument("--state", type=Path, default=Path(STATE_FOLDER), help="folder shared with the engine")
    parser.add_argument("--keys", type=Path, default=Path(KEYS_FOLDER), help="folder with the keys")
    parser.add_argument("--port", type=int, default=AGENT_PORT)
    parser.add_argument("--host", default="0.0.0.0")  # noqa: S104 - the operator calls it by the pod's address
    parser.add_argument("--engine-port", type=int, default=ENGINE_PORT)
    parser.add_argument("--stop-within", type=float, default=STOP_WITHIN_S, help="seconds from SIGTERM to the end")
    parser.add_argument(
        "--settle", type=float, default=SETTLE_S, help="seconds within which the launcher is told to end, too"
    )
    parser.add_argument("--stage-timeout", type=float, default=STAGE_TIMEOUT_S, help="seconds to wait for a draft")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    settings = ServingSettings.from_env()
    try:
        if options.command == "stage":
            # The first process of a container ignores a signal that it does not handle.
            signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
            stage_start(PodFolder(options.state), _registry(settings), timeout=options.stage_timeout)
        else:
            asyncio.run(serve(settings, options))
    except (RuntimeFault, StoreError, OSError) as error:
        log.error("%s", error)  # noqa: TRY400 - the message is the whole story
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
