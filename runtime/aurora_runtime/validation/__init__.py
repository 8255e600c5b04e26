"""The validator: measures one candidate on the real engine and leaves evidence in the store.

Invariant (promise 1): it reports what it saw, whatever the verdict; it fails only when it could not measure.
"""
