"""Tells Kubernetes, and thereby the operator, why a program ended by an error.

Invariants: the message is one line of at most :data:`MAX_MESSAGE_CHARACTERS`. It repeats the text of our own errors
only, which hold no client's tokens and no secret, also where they quote an engine. Any other error is named by its type
and place, because its text may hold either. The first message of a container stays, because the other processes of a
trainer fail after the first one did. A message that cannot be written changes nothing else.
"""

from __future__ import annotations

import contextlib
import os
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from aurora_protocol.errors import ProtocolError
from aurora_runtime.errors import RuntimeFault
from aurora_store.errors import StoreError, bounded_text

TERMINATION_LOG: Final = Path("/dev/termination-log")
"""Kubernetes mounts this file into every container and shows its content in the pod's status."""
MAX_MESSAGE_CHARACTERS: Final = 1000


def write_termination_message(reason: str) -> None:
    """Write the first line of ``reason``, unless this container has written a message already."""
    with contextlib.suppress(OSError):  # a full disk is a reason to end, and must not hide itself
        if TERMINATION_LOG.exists() and not TERMINATION_LOG.stat().st_size:
            TERMINATION_LOG.write_text(bounded_text(reason.partition("\n")[0], MAX_MESSAGE_CHARACTERS))


@contextlib.contextmanager
def errors_reported() -> Iterator[None]:
    """Write the termination message for an error that ends the program, and raise the error again."""
    try:
        yield
    except Exception as error:  # any error ends the program, and is raised again
        write_termination_message(describe(error))
        raise


def describe(error: Exception) -> str:
    """One sentence about ``error``, without any text of an error that is not ours."""
    if isinstance(error, RuntimeFault | StoreError | ProtocolError):
        return str(error) or type(error).__name__
    kind = type(error).__name__
    if isinstance(error, OSError) and error.errno is not None:
        kind = f"{kind} ({os.strerror(error.errno)})"
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"ended by {kind}{place}; the container's log says more"
