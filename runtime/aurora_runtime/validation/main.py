"""The validation Job: reads its settings, measures, and stores the evidence.

Exit status 0: evidence was written, whatever the verdict. Exit status 1: the Job could not measure, and one log line
says why. Exit status ``EXIT_INTERRUPTED``: the pod was told to end. Its Job, unless deleted, measures in another pod.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import sys
import tempfile
from pathlib import Path
from typing import Final

from aurora_protocol.errors import ProtocolError
from aurora_protocol.evidence_records import Evidence
from aurora_protocol.pod_settings import EXIT_INTERRUPTED, KEYS_FOLDER, SIGNING_FOLDER, ValidationSettings
from aurora_protocol.signatures import KeyName, keys_in
from aurora_runtime.errors import MeasurementError, RuntimeFault
from aurora_runtime.pod_registry import PodRegistry
from aurora_runtime.store_thread import call_in_thread
from aurora_runtime.termination_message import write_termination_message
from aurora_runtime.validation.store_reads import repeat_while_away
from aurora_runtime.validation.validation_run import Workspace, validate
from aurora_store import FencedObjectStore, StoreConfig
from aurora_store.deadline import total_deadline
from aurora_store.errors import ObjectExists, StoreError

log = logging.getLogger(__name__)

STORE_SECONDS: Final = 360.0
"""Time to store the result, of the ``FINISH_RESERVE_SECONDS`` of the Job. The engines stop in the rest."""


async def _validate_until_signal(settings: ValidationSettings, registry: PodRegistry, workspace: Workspace) -> None:
    """Measure, and store the result. SIGTERM and SIGINT cancel both.

    So the engines stop, a replica is given back, and no pod that is being deleted waits for a store that is away.
    """

    async def measure_and_store() -> None:
        evidence = await validate(settings, registry, workspace)
        await call_in_thread(lambda: _store(registry, evidence))

    task = asyncio.ensure_future(measure_and_store())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    await task


def _store(registry: PodRegistry, evidence: Evidence) -> None:
    """Store the evidence, for up to :data:`STORE_SECONDS` if the store is away."""
    with total_deadline(STORE_SECONDS):
        try:
            key = repeat_while_away("storing the evidence", lambda: registry.put_evidence(evidence), STORE_SECONDS)
        except ObjectExists:
            log.warning("another pod of this Job has already written the evidence of this attempt, which is kept")
            return
    log.info("verdict %s: %s", evidence.verdict.kind, "; ".join(evidence.verdict.reasons))
    log.info("evidence written to %s", key)


def _open_registry(settings: ValidationSettings, signing: Path) -> PodRegistry:
    """The store, with the key that signs evidence. Raises :class:`MeasurementError` when the key is missing."""
    keys = keys_in(signing)
    if KeyName.EVIDENCE not in keys:
        raise MeasurementError(f"{signing} has no {KeyName.EVIDENCE.value}, and unsigned evidence would not count")
    return PodRegistry(FencedObjectStore(StoreConfig.of(settings.store)), keys)


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the Job."""
    parser = argparse.ArgumentParser(description="Measure one draft candidate of an AuroraSpeculator.")
    parser.add_argument("--keys", type=Path, default=Path(KEYS_FOLDER), help="folder with the agents' token")
    parser.add_argument(
        "--signing", type=Path, default=Path(SIGNING_FOLDER), help="folder with the key that signs evidence"
    )
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    try:
        settings = ValidationSettings.from_env()
        registry = _open_registry(settings, options.signing)
        with tempfile.TemporaryDirectory(prefix="aurora-validation-") as scratch:
            workspace = Workspace(Path(scratch), options.keys)
            asyncio.run(_validate_until_signal(settings, registry, workspace))
    except (RuntimeFault, StoreError, ProtocolError) as error:
        log.error("could not measure: %s: %s", type(error).__name__, error)  # noqa: TRY400 - the message says it all
        write_termination_message(str(error))
        raise SystemExit(1) from None
    except asyncio.CancelledError:
        log.error("interrupted: the engines are stopped, no evidence was written")  # noqa: TRY400
        write_termination_message("interrupted before it could finish")
        raise SystemExit(EXIT_INTERRUPTED) from None
