"""Execution of plans. Every action is idempotent."""
