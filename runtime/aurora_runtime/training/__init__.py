"""The trainer: turns traces in the store into candidate drafts in the registry.

Invariants: held-out requests are never trained on. A shard is part of the weights exactly when the state that holds
those weights lists it. A candidate's files are in the store before its number is taken.
"""
