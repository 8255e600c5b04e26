"""The sidecar of an inference pod: stages and swaps drafts, lends the pod to measurements, uploads traces.

Light on purpose: no torch, no sglang. Invariant: the agent is never the source of what the pod serves; it reads version
and checksum from the engine.
"""
