"""Checks an installation from inside the cluster, for ``helm test``: ``python -m aurora_operator.installation_check``.

Two things are checked. The API server serves AuroraSpeculators, so the CRD is installed. A pod of the operator leads,
so speculators are handled. The pod's metrics say so. Only one of the operator's pods leads, and a Service spreads the
requests over all of them, so the request is repeated.
"""

from __future__ import annotations

import argparse
import json
import re
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Final

from aurora_api import API_VERSION, PLURAL
from aurora_operator.errors import CheckFailed

CREDENTIALS: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
TIMEOUT_SECONDS: Final = 60.0
REQUEST_SECONDS: Final = 5.0
POLL_SECONDS: Final = 1.0
_LEADING = re.compile(r"^aurora_operator_leading 1(\.0)?$", re.MULTILINE)


def _get(url: str, credentials: Path | None = None) -> str:
    """The body of ``url``, never through a proxy. Raises :class:`OSError`."""
    headers: dict[str, str] = {}
    handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
    if credentials is not None:
        headers["Authorization"] = f"Bearer {(credentials / 'token').read_text().strip()}"
        if url.startswith("https:"):
            trusted = ssl.create_default_context(cafile=credentials / "ca.crt")
            handlers.append(urllib.request.HTTPSHandler(context=trusted))
    request = urllib.request.Request(url, headers=headers)  # noqa: S310 - http and https of the cluster
    try:
        with urllib.request.build_opener(*handlers).open(request, timeout=REQUEST_SECONDS) as answer:
            body: bytes = answer.read()
    except urllib.error.HTTPError as error:
        error.close()
        raise
    return body.decode()


def check_crd(api: str, credentials: Path) -> str:
    """Raises :class:`CheckFailed` unless the API server serves our resource, and :class:`OSError`."""
    missing = CheckFailed(f"the API server does not serve {PLURAL} of {API_VERSION}: install the CRD")
    try:
        listed = json.loads(_get(f"{api}/apis/{API_VERSION}", credentials))
    except urllib.error.HTTPError as error:
        if error.code == HTTPStatus.NOT_FOUND:
            raise missing from error
        raise
    if PLURAL not in {resource["name"] for resource in listed["resources"]}:
        raise missing
    return f"the API server serves {PLURAL} of {API_VERSION}"


def check_leader(metrics: str) -> str:
    """Raises :class:`CheckFailed` when the operator's pod that answers does not lead, and :class:`OSError`."""
    if not _LEADING.search(_get(metrics)):
        raise CheckFailed("the pod of the operator that answered does not lead")
    return "a pod of the operator leads"


def _until_it_passes(check: Callable[[], str], timeout_seconds: float) -> str:
    """Repeat ``check``. Raises :class:`CheckFailed` with its last failure after ``timeout_seconds``."""
    deadline = time.monotonic() + timeout_seconds
    while True:
        try:
            return check()
        except (CheckFailed, OSError) as error:
            if time.monotonic() >= deadline:
                raise CheckFailed(f"{error} (tried for {timeout_seconds:.0f} s)") from error
        time.sleep(POLL_SECONDS)


def main(arguments: list[str] | None = None) -> int:
    """Print one line for each check. Returns 1 when a check fails."""
    parser = argparse.ArgumentParser(description="Check an installation of the operator from inside the cluster.")
    parser.add_argument("--metrics", required=True, metavar="URL", help="URL of the operator's metrics")
    parser.add_argument("--api", default="https://kubernetes.default.svc", metavar="URL", help="URL of the API server")
    parser.add_argument(
        "--credentials", type=Path, default=CREDENTIALS, metavar="FOLDER", help="folder with token and ca.crt"
    )
    parser.add_argument(
        "--timeout-seconds", type=float, default=TIMEOUT_SECONDS, metavar="SECONDS", help="longest time for each check"
    )
    options = parser.parse_args(arguments)
    checks = (lambda: check_crd(options.api, options.credentials), lambda: check_leader(options.metrics))
    try:
        for check in checks:
            print(f"ok: {_until_it_passes(check, options.timeout_seconds)}")
    except CheckFailed as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
