"""Upgrade and rollback of the chart from the former version, on a real cluster under traffic."""
