"""Errors of ``kubectl aurora``. Each message is one line for the terminal: what happened, to what, and what to do.

CliError
├── ClusterError     the API server refused a call or could not be reached
│   ├── NotFound     the object does not exist
│   └── Forbidden    the user lacks a right
├── Unreadable       an object does not satisfy the models of this version
├── Refused          the decision could have no effect, or must not be made like this
├── StoreFault       the store could not be read
└── ProgramFailed    kubectl, or a program in a pod, failed
"""

from __future__ import annotations


class CliError(Exception):
    """Base of every error that is shown to the user as one line."""


class ClusterError(CliError):
    """The API server refused a call, or could not be reached."""


class NotFound(ClusterError):
    """The object does not exist."""


class Forbidden(ClusterError):
    """The user lacks a right."""


class Unreadable(CliError):
    """An object does not satisfy the models of this version, for example because a newer operator wrote it."""


class Refused(CliError):
    """The decision could have no effect, or must not be made like this."""


class StoreFault(CliError):
    """The store could not be read."""


class ProgramFailed(CliError):
    """kubectl, or a program in a pod, failed."""
