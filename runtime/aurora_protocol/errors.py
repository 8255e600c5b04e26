"""Errors of the contract package.

ContractError
└── InvalidRecord   a stored or received record does not satisfy its model
"""

from __future__ import annotations


class ProtocolError(Exception):
    """Base of every error raised by :mod:`aurora_api`."""


class InvalidRecord(ProtocolError):
    """A record read from the store or the wire does not satisfy its model."""
