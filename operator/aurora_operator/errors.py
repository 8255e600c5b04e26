"""Errors of the operator.

OperatorError
├── KubernetesError   the API server refused a call or could not be reached
│   ├── NotFound      the object does not exist
│   └── Conflict      somebody else wrote first: observe again
├── Gone              the speculator does not exist any more
│   └── Recreated     another one has its name
├── NotLeading        another replica acts
├── ConfigError       the operator's own settings are incomplete
└── InvalidSpec       a stored spec does not satisfy its model
"""

from __future__ import annotations

from typing import TYPE_CHECKING

UNAVAILABLE_STATUSES = frozenset({0, 401, 429, 502, 503, 504})
"""HTTP statuses that mean "the API server cannot answer now" (0: no connection).

500 is not among them: the API server answers 500 to a template that has a number where text belongs.
"""

if TYPE_CHECKING:
    from aurora_api.v1alpha1.status import SpeculatorStatus
    from aurora_operator.children.metadata import Owner


class OperatorError(Exception):
    """Base of every error raised by :mod:`aurora_operator`."""


class KubernetesError(OperatorError):
    """The API server refused a call (``status``: the HTTP status) or could not be reached (``status`` 0)."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class NotFound(KubernetesError):
    """The object does not exist."""


class Conflict(KubernetesError):
    """The object exists already, its resourceVersion changed, or another object has its name now."""


class Gone(OperatorError):
    """The speculator does not exist any more, or is being deleted without our finalizer."""


class Recreated(Gone):
    """Another speculator has its name, and needs a task of its own."""


class NotLeading(OperatorError):
    """This replica lost the installation's Lease, so it must end."""


class ConfigError(OperatorError):
    """The operator's own settings are incomplete."""


class InvalidSpec(OperatorError):
    """The spec of a stored custom resource does not satisfy its model. The message names each field and its fault.

    The error carries the parts that did parse, so that the operator can still report the fault in the status.
    """

    def __init__(self, owner: Owner, status: SpeculatorStatus, message: str) -> None:
        super().__init__(message)
        self.owner = owner
        self.status = status
