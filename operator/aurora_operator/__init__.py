"""The operator: observes a speculator, plans with pure functions, and acts idempotently.

Invariant: the truth is in the custom resource's status, in the store and in the pods, never in this process.
"""
