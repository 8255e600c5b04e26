"""The draft: its network, its initial weights, its checkpoint files, and the parts of the target that it copies."""
