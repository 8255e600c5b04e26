"""Finds out what is wrong with a speculator: facts of a snapshot, rules over them, findings in order of likelihood.

Everything here is pure. The knowledge is that of ``docs/how-to/troubleshooting.md`` and
``docs/reference/failure-modes.md``.
"""
