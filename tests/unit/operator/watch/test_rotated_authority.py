"""Lists and watches go on after the cluster's certificate authority was replaced, without a restart of the process."""

from __future__ import annotations

import json
import ssl
import subprocess
import threading
from collections.abc import Awaitable, Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from kubernetes import client

from aurora_operator.errors import Unconnected
from aurora_operator.kubernetes_api import POD
from aurora_operator.watch.api_stream import ApiStream


class _Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if "watch=1" in self.path:
            answer = {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "9"}}}
        else:
            answer = {"metadata": {"resourceVersion": "9"}, "items": []}
        body = json.dumps(answer).encode() + b"\n"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name of the overridden method
        """Print nothing."""


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """Print nothing about a client that refused the certificate."""


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that is its own authority, and its key."""
    folder.mkdir()
    made, key = folder / "certificate.pem", folder / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"),
            *("-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", made),
        ],
        check=True,
        capture_output=True,
    )
    return made, key


@pytest.fixture(name="rotated")
def _rotated(tmp_path: Path) -> Iterator[tuple[client.Configuration, str]]:
    """A client that still trusts the former authority, and the text of the present one's certificate."""
    (former, _), (present, key) = certificate(tmp_path / "former"), certificate(tmp_path / "present")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(present, key)
    server = _Server(("127.0.0.1", 0), _Answer)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    configuration = client.Configuration()
    configuration.host = f"https://127.0.0.1:{server.server_port}"
    configuration.ssl_ca_cert = str(former)
    try:
        yield configuration, present.read_text()
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def replace(configuration: client.Configuration, text: str) -> None:
    """Write the file of the authority anew, as the kubelet does after a rotation."""
    Path(str(configuration.ssl_ca_cert)).write_text(text)


async def _list(stream: ApiStream) -> int:
    return (await stream.list_page(POD, "", "", "")).revision


async def _watch(stream: ApiStream) -> int:
    async for event in stream.watch(POD, "", "", 1, 60):
        return int(event.object["metadata"]["resourceVersion"])
    raise AssertionError("no event")


@pytest.mark.parametrize("call", [_list, _watch])
async def test_the_file_of_the_authority_is_read_again_after_a_failure(
    call: Callable[[ApiStream], Awaitable[int]], rotated: tuple[client.Configuration, str]
) -> None:
    configuration, present = rotated
    stream = ApiStream(configuration)
    try:
        for text in ("half a file", present):
            with pytest.raises(Unconnected, match="ClientConnectorCertificateError"):
                await call(stream)
            replace(configuration, text)
        with pytest.raises(Unconnected, match="ClientConnectorCertificateError"):
            await call(stream)
        assert await call(stream) == 9
    finally:
        await stream.close()
