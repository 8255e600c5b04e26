"""Which replica of the operator acts: the election with a Lease, in a thread and event loop of its own."""
