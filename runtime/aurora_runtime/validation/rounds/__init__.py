"""Rounds of a measurement: what is measured when, and how answers are compared."""
