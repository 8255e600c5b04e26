"""Compares a new version of the draft with the former one on live traffic."""
