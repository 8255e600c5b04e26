"""What Aurora's parts say to each other: agent API, pod settings, store records and the gate.

Everything that crosses a process boundary is a model in this package, so that one side cannot drift from the other.
The package imports neither torch nor kubernetes, so that every part can afford to depend on it.
"""
