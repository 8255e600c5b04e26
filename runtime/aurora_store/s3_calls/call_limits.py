"""Limits of one call of the store: the time until its answer is complete, and the bytes that the answer may have.

Why at the socket: botocore reads headers, listings and error texts itself, and its timeouts count from byte to byte. A
store that sends one byte a second never exceeds such a timeout, and a store that never stops sending fills the memory.

Each thread has at most one call under way. Every read and write of a connection asks the limits of its thread's call.
A thread without limits waits at most :data:`IO_TIMEOUT_SECONDS` for each read and write.

Invariants:

- With limits, a call ends at its deadline. A connection attempt, or botocore's pause before a retry, that is under way
  then still comes to its end. Only the resolution of a host name can hold a thread longer.
- A call that is interrupted ends within :data:`INTERRUPT_POLL_SECONDS` of its next wait for bytes.
- With an :class:`AddressPolicy`, no connection is opened to an address that the policy refuses. Through a proxy the
  client resolves no name, so there the proxy decides.
"""

from __future__ import annotations

import math
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from botocore.awsrequest import (
    AWSHTTPConnection,
    AWSHTTPConnectionPool,
    AWSHTTPSConnection,
    AWSHTTPSConnectionPool,
)
from urllib3.exceptions import HTTPError, NameResolutionError

from aurora_store.policy.address_policy import AddressPolicy

IO_TIMEOUT_SECONDS = 60.0
"""Longest wait for one read from a connection, or for sending one block of a body."""
INTERRUPT_POLL_SECONDS = 0.5
"""How often a wait for bytes looks whether the call was interrupted."""
PAUSE_POLL_SECONDS = 0.05
"""How often a pause between two requests looks whether the call was interrupted."""
MAX_ADDRESSES = 8
"""Most addresses of one host name that a connection tries."""
MAX_HEADER_BYTES = 64 << 10
"""Bytes of an answer's headers, which an answer may have beside its body."""


class CallLimitReached(OSError):
    """The answer was not complete in time, is too large, or nobody wants it any more. The message says which."""


INTERRUPTED = "nobody waits for the answer any more"


@dataclass(frozen=True)
class _Deadline:
    """When a call must be complete, in seconds of the monotonic clock, and how long that was from the beginning."""

    end_seconds: float
    allowed_seconds: float


class CallLimits:
    """The limits of one call, retries included."""

    def __init__(self, deadline: _Deadline, max_bytes: int, on_request: Callable[[], None]) -> None:
        self._deadline_seconds, self._allowed_seconds = deadline.end_seconds, deadline.allowed_seconds
        self._max_bytes = max_bytes
        self._received_bytes = 0
        self._on_request = on_request
        self.interrupted = _thread.interrupted
        """Whether nobody wants the answer any more."""
        self.too_large = ""
        """Why the answer is too large; empty while it is not."""
        self.address_refused = ""
        """Why the endpoint's address is refused; empty while it is not."""
        self.reading_object = False
        """Whether the answer's body is an object, after good headers."""

    @property
    def overdue(self) -> str:
        """Why the call is overdue; empty before its deadline."""
        past = time.monotonic() >= self._deadline_seconds
        return f"no complete answer within {self._allowed_seconds:.0f} s" if past else ""

    def begin_request(self) -> None:
        """Count one HTTP request. Each attempt at the call may receive all bytes again."""
        self.raise_if_reached()
        self._received_bytes = 0
        self._on_request()

    def begin_object(self, max_bytes: int, announced_bytes: int) -> None:
        """The headers were good: allow ``max_bytes`` for the object that follows.

        Raises :class:`CallLimitReached` when the headers announce a larger object.
        """
        self.reading_object = True
        self._max_bytes = max_bytes
        self._received_bytes = 0
        self.require_bytes(announced_bytes, max_bytes)

    def require_bytes(self, count: int, max_bytes: int) -> None:
        """Raise :class:`CallLimitReached` when ``count`` exceeds ``max_bytes``."""
        if count > max_bytes:
            self.too_large = f"the answer has more than {max_bytes} bytes"
            raise CallLimitReached(self.too_large)

    def seconds_left(self) -> float:
        """Seconds until the deadline. Raises :class:`CallLimitReached` at the deadline."""
        self.raise_if_reached()
        return max(self._deadline_seconds - time.monotonic(), 0.001)

    def pause(self, seconds: float) -> None:
        """Wait ``seconds`` before the next request of the call.

        Raises :class:`CallLimitReached` as soon as the call has reached a limit.
        """
        end_seconds = time.monotonic() + seconds
        while (pause_left := end_seconds - time.monotonic()) > 0:
            time.sleep(min(pause_left, PAUSE_POLL_SECONDS, self.seconds_left()))
        self.raise_if_reached()

    def received(self, count: int) -> None:
        """Count bytes of the answer. Raises :class:`CallLimitReached` when the answer is too large."""
        self._received_bytes += count
        self.require_bytes(self._received_bytes - MAX_HEADER_BYTES, self._max_bytes)

    def raise_if_reached(self) -> None:
        """Raise :class:`CallLimitReached` when the call has reached a limit, so that nothing is tried again."""
        given_up = INTERRUPTED if self.interrupted() else ""
        if reason := self.too_large or self.address_refused or self.overdue or given_up:
            raise CallLimitReached(reason)


def _never() -> bool:
    return False


class _ThreadState(threading.local):
    limits: CallLimits | None = None
    deadline: _Deadline | None = None
    """The total deadline of several calls."""
    interrupted: Callable[[], bool] = staticmethod(_never)


_thread = _ThreadState()


def current_limits() -> CallLimits | None:
    """The limits of the call that this thread is making."""
    return _thread.limits


@contextmanager
def call_limits(seconds: float, max_bytes: int, on_request: Callable[[], None]) -> Iterator[CallLimits]:
    """Limit the call that this thread makes inside the context.

    A :func:`total_deadline` around the call shortens ``seconds``.
    """
    before, _thread.limits = _thread.limits, CallLimits(_deadline_in(seconds), max_bytes, on_request)
    try:
        yield _thread.limits
    finally:
        _thread.limits = before


@contextmanager
def total_deadline(seconds: float) -> Iterator[None]:
    """End all calls that this thread makes inside the context within ``seconds`` together.

    A total deadline around this one is kept, when it is earlier.
    """
    before, _thread.deadline = _thread.deadline, _deadline_in(seconds)
    try:
        yield
    finally:
        _thread.deadline = before


def total_seconds_left() -> float:
    """Seconds until the total deadline around the calls of this thread. Infinite without one."""
    return math.inf if _thread.deadline is None else _thread.deadline.end_seconds - time.monotonic()


def _deadline_in(seconds: float) -> _Deadline:
    """The deadline ``seconds`` from now, or the total deadline around it if that is earlier."""
    deadline = _Deadline(time.monotonic() + seconds, seconds)
    total = _thread.deadline
    return deadline if total is None else min(deadline, total, key=lambda one: one.end_seconds)


@contextmanager
def interruptible(interrupted: Callable[[], bool]) -> Iterator[None]:
    """End the call that this thread makes inside the context soon after ``interrupted`` returns true.

    ``interrupted`` is called often, and by this thread.
    """
    before, _thread.interrupted = _thread.interrupted, interrupted
    try:
        yield
    finally:
        _thread.interrupted = before


def is_interrupted() -> bool:
    """Whether the work of this thread was interrupted."""
    return _thread.interrupted()


def limit_connections(client: Any, addresses: AddressPolicy | None) -> None:
    """Make the connections of a botocore client ask for limits, and connect to allowed addresses only.

    botocore offers no public access to its connections. Its session takes the classes of its connection pools from this
    private attribute, for proxies too.
    """
    session = client._endpoint.http_session
    session._pool_classes_by_scheme = {
        "http": partial(_HttpPool, addresses=addresses),
        "https": partial(_HttpsPool, addresses=addresses),
    }
    session._manager.pool_classes_by_scheme = session._pool_classes_by_scheme


def begin_request(**_: Any) -> None:
    """Handler of botocore's event ``before-send``."""
    limits = current_limits()
    if limits is not None:
        limits.begin_request()


def stop_retries(**_: Any) -> None:
    """Handler of botocore's event ``needs-retry``: a call that has reached a limit is not tried again."""
    limits = current_limits()
    if limits is not None:
        limits.raise_if_reached()


def _wait_seconds() -> float:
    limits = current_limits()
    return IO_TIMEOUT_SECONDS if limits is None else min(IO_TIMEOUT_SECONDS, limits.seconds_left())


def _received(count: int) -> int:
    limits = current_limits()
    if limits is not None:
        limits.received(count)
    return count


def _receive(connection: socket.socket, receive: Callable[[], int]) -> int:
    """Call ``receive`` until it returns, the wait is over, or the thread's call was interrupted."""
    limits, give_up = current_limits(), time.monotonic() + _wait_seconds()
    while True:
        connection.settimeout(max(0.001, min(INTERRUPT_POLL_SECONDS, give_up - time.monotonic())))
        try:
            return _received(receive())
        except TimeoutError:
            if limits is not None:
                limits.raise_if_reached()
            if time.monotonic() >= give_up:
                raise


class _LimitedSocket(socket.socket):
    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        return _receive(self, lambda: socket.socket.recv_into(self, buffer, nbytes, flags))

    def sendall(self, data: Any, flags: int = 0) -> None:
        self.settimeout(_wait_seconds())
        super().sendall(data, flags)


class _LimitedTlsSocket(ssl.SSLSocket):
    def recv_into(self, buffer: Any, nbytes: int | None = None, flags: int = 0) -> int:
        return _receive(self, lambda: ssl.SSLSocket.recv_into(self, buffer, nbytes, flags))

    def sendall(self, data: Any, flags: int = 0) -> None:
        self.settimeout(_wait_seconds())
        super().sendall(data, flags)


def _limited(connect: Callable[[], socket.socket]) -> socket.socket:
    """A connection that asks for limits, in place of the one that ``connect`` returns."""
    plain = connect()
    timeout = plain.gettimeout()
    limited = _LimitedSocket(plain.family, plain.type, plain.proto, fileno=plain.detach())
    limited.settimeout(timeout)
    return limited


def _connect_seconds(timeout: float | None) -> float:
    return _wait_seconds() if timeout is None else min(timeout, _wait_seconds())


def _connect(connection: Any, addresses: AddressPolicy | None, connect: Callable[[], socket.socket]) -> socket.socket:
    """Open ``connection`` by ``connect``, to an address that the policy allows."""
    timeout = connection.timeout
    if addresses is None or connection.proxy is not None:
        connection.timeout = _connect_seconds(timeout)
        return connect()
    host = connection._dns_host
    try:
        allowed = addresses.allowed_addresses(host, connection.port)[:MAX_ADDRESSES]
    except socket.gaierror as error:
        raise NameResolutionError(host, connection, error) from error
    if not allowed:
        raise _refused()
    for address in allowed:
        connection.timeout = _connect_seconds(timeout)
        # urllib3 resolves this field once more, and an address resolves to itself.
        connection._dns_host = address
        try:
            return connect()
        except HTTPError:
            if address == allowed[-1]:
                raise
        finally:
            connection._dns_host = host
    raise AssertionError("the last address returns or raises")


def _refused() -> CallLimitReached:
    """The error for an endpoint without an allowed address. The call is not tried again."""
    reason = "the endpoint leads to an address of the node or of the cluster"
    limits = current_limits()
    if limits is not None:
        limits.address_refused = reason
    return CallLimitReached(reason)


class _HttpConnection(AWSHTTPConnection):
    def __init__(self, *args: Any, addresses: AddressPolicy | None = None, **options: Any) -> None:
        super().__init__(*args, **options)
        self._addresses = addresses

    def _new_conn(self) -> socket.socket:
        return _limited(lambda: _connect(self, self._addresses, super(_HttpConnection, self)._new_conn))


class _HttpsConnection(AWSHTTPSConnection):
    def __init__(self, *args: Any, addresses: AddressPolicy | None = None, **options: Any) -> None:
        super().__init__(*args, **options)
        self._addresses = addresses

    def _new_conn(self) -> socket.socket:
        return _limited(lambda: _connect(self, self._addresses, super(_HttpsConnection, self)._new_conn))

    def connect(self) -> None:
        if self.ssl_context is not None:
            self.ssl_context.sslsocket_class = _LimitedTlsSocket
        super().connect()


class _HttpPool(AWSHTTPConnectionPool):
    ConnectionCls = _HttpConnection


class _HttpsPool(AWSHTTPSConnectionPool):
    ConnectionCls = _HttpsConnection
