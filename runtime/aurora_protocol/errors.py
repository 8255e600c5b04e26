"""Errors of the protocol package: of records (:class:`InvalidRecord`), and of calls to agents (:class:`AgentError`)."""

from __future__ import annotations


class ProtocolError(Exception):
    """Base of every error raised by :mod:`aurora_protocol`."""


class InvalidRecord(ProtocolError):
    """A record read from the store or the wire does not satisfy its model."""


class UnsignedRecord(InvalidRecord):
    """The record has no signature, or one that belongs to another key, place or content."""


class AgentError(ProtocolError):
    """A call to an agent failed."""


class AgentUnreachable(AgentError):
    """The agent gave no answer in time. Whether the agent carried out the call is unknown."""


class InvalidAgentAnswer(AgentError):
    """The agent's answer is too long or not a valid record."""


class AgentRefused(AgentError):
    """The agent refused the call. ``status`` is the HTTP status, ``reason`` the agent's own text."""

    def __init__(self, message: str, status: int = 0, reason: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason


class Fenced(AgentRefused):
    """The agent has seen a higher epoch than the one sent, or another order is under way (HTTP 409).

    ``epoch`` is that of the last order that the agent accepted. None when there was none.
    """

    def __init__(self, message: str, status: int = 0, reason: str = "", epoch: int | None = None) -> None:
        super().__init__(message, status, reason)
        self.epoch = epoch
