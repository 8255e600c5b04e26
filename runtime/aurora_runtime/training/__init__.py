"""The trainer: from traces in the store to candidate drafts in the registry.

Invariants: held-out requests are never trained on; a shard is part of the weights exactly when the state that holds
those weights lists it; a candidate's files are in the store before its number is taken.
"""
