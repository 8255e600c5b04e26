"""Unit tests of the operator: pure functions, in virtual time."""
