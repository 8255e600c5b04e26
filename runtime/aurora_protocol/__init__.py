"""The messages between Aurora's parts: agent API, pod settings, store records, and the gate's verdict.

Why: both sides of a process boundary use the same model, so neither can drift from the other.

Invariants: everything that crosses a process boundary is a model of this package. The package imports neither torch
nor kubernetes, so every part can depend on it. Only :mod:`~aurora_protocol.agent_client` needs aiohttp.
"""
