"""The validation Job: settings -> measurement -> baseline and evidence in the store.

Exit status 0 whatever the verdict: evidence was written. 1 when it could not measure, with one line that says why.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import signal
import sys
import tempfile
from pathlib import Path

from aurora_protocol.errors import ProtocolError
from aurora_protocol.pod_settings import KEYS_FOLDER, ValidationSettings
from aurora_runtime.errors import RuntimeFault
from aurora_runtime.validation.validation_run import Outcome, Place, run
from aurora_store import ObjectStore, Registry, StoreConfig
from aurora_store.errors import ObjectExists, StoreError

log = logging.getLogger(__name__)

TERMINATION_LOG = Path("/dev/termination-log")
"""Kubernetes mounts it into every container and shows its content in the pod's status."""


async def _interruptible(settings: ValidationSettings, registry: Registry, place: Place) -> Outcome:
    """:func:`run`, cancelled by SIGTERM and SIGINT, so that its engines are stopped and a replica is given back."""
    task = asyncio.ensure_future(run(settings, registry, place))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    return await task


def _leave_word(why: str) -> None:
    """Tell Kubernetes, and through it the operator, why nothing was measured; the first line only, the log has all."""
    if TERMINATION_LOG.exists():
        TERMINATION_LOG.write_text(why.partition("\n")[0][:1000])


def _store(registry: Registry, outcome: Outcome) -> None:
    """The baseline first, so that evidence never names what is not there."""
    if outcome.baseline is not None:
        with contextlib.suppress(ObjectExists):
            log.info("baseline written to %s", registry.put_baseline(outcome.baseline))
    try:
        key = registry.put_evidence(outcome.evidence)
    except ObjectExists:
        log.warning("evidence of this attempt exists already: another pod of this Job was first; it stands")
        return
    verdict = outcome.evidence.verdict
    log.info("verdict %s: %s", verdict.kind, "; ".join(verdict.reasons))
    log.info("evidence written to %s", key)


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the Job."""
    parser = argparse.ArgumentParser(description="Measure one draft candidate of an AuroraSpeculator.")
    parser.add_argument("--keys", type=Path, default=Path(KEYS_FOLDER), help="folder with the agents' token")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    try:
        settings = ValidationSettings.from_env()
        registry = Registry(ObjectStore(StoreConfig.of(settings.store)))
        with tempfile.TemporaryDirectory(prefix="aurora-validation-") as scratch:
            place = Place(Path(scratch), options.keys)
            outcome = asyncio.run(_interruptible(settings, registry, place))
        _store(registry, outcome)
    except (RuntimeFault, StoreError, ProtocolError) as error:
        log.error("could not measure: %s: %s", type(error).__name__, error)  # noqa: TRY400 - the message says it all
        _leave_word(str(error))
        raise SystemExit(1) from None
    except asyncio.CancelledError:
        log.error("interrupted: the engines are stopped, no evidence was written")  # noqa: TRY400
        _leave_word("interrupted before it could finish")
        raise SystemExit(1) from None
