"""The sidecar of an inference pod: stages and swaps drafts, uploads traces, reports what the engine serves.

Light on purpose: no torch, no sglang. Invariant: it holds no truth; version and checksum are read from the engine.
"""
