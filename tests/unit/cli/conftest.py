"""Fixtures of all tests of the program."""

from tests.unit.cli.fake_cluster import api_server_fixture

__all__ = ["api_server_fixture"]
