"""Errors of the operator.

OperatorError
├── KubeError         the API server refused a call or could not be reached
│   ├── NotFound      no such object
│   └── Conflict      somebody else wrote first: observe again
├── AgentError        an agent refused a call or could not be reached
│   └── Fenced        an agent has seen a higher epoch
└── InvalidSpec       a stored custom resource does not satisfy its model
"""

from __future__ import annotations


class OperatorError(Exception):
    """Base of every error raised by :mod:`aurora_operator`."""


class KubernetesError(OperatorError):
    """The API server refused a call (``status``) or could not be reached (``status`` 0)."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class NotFound(KubernetesError):
    """There is no such object."""


class Conflict(KubernetesError):
    """The object exists already, or its resourceVersion moved on."""


class AgentError(OperatorError):
    """An agent refused a call or could not be reached."""


class Fenced(AgentError):
    """An agent has seen a higher epoch than the one sent."""


class InvalidSpec(OperatorError):
    """A stored custom resource does not satisfy its model."""
