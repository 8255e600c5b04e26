"""The validator: measures one candidate on the real engine and writes evidence to the store.

Invariant (promise 1): the validator writes evidence whatever the verdict. It fails only when it could not measure.
"""
