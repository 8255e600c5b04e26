"""The sidecar of an inference pod: stages and swaps drafts, lends the pod to measurements, uploads traces.

The agent imports neither torch nor sglang, to stay small. Invariant: the agent never reports the served draft from
memory. It reads version and checksum from the engine.
"""
