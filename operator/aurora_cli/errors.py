"""Errors of ``kubectl aurora``. Each message is one line for the terminal: what happened, to what, and what to do.

A refusal may also name a command to run, which is printed on a line of its own.

CliError
├── ClusterError     the API server refused a call or could not be reached
│   ├── NotFound     the object does not exist
│   ├── NotInstalled the cluster does not know the kind AuroraSpeculator
│   ├── Forbidden    the user lacks a right
│   └── Conflict     somebody else wrote first
├── Unreadable       an object does not satisfy the models of this version
├── Refused          the decision could have no effect, or must not be made like this
├── StoreFault       the store could not be read
└── ProgramFailed    a program in a pod, or kubectl itself, failed
"""

from __future__ import annotations


class CliError(Exception):
    """Base of every error that is shown to the user as one line."""


class ClusterError(CliError):
    """The API server refused a call, or could not be reached."""


class NotFound(ClusterError):
    """The object does not exist."""


class NotInstalled(ClusterError):
    """The cluster does not know the kind AuroraSpeculator."""


class Forbidden(ClusterError):
    """The user lacks a right."""


class Conflict(ClusterError):
    """The object changed since it was read."""


class Unreadable(CliError):
    """An object does not satisfy the models of this version, for example because a newer operator wrote it."""


class Refused(CliError):
    """The decision could have no effect, or must not be made like this."""

    def __init__(self, message: str, command: str = "") -> None:
        super().__init__(message)
        self.command = command
        """The command that mends it, ready to be pasted. Empty: none."""


class StoreFault(CliError):
    """The store could not be read."""


class ProgramFailed(CliError):
    """A program in a pod, or kubectl itself, failed."""
