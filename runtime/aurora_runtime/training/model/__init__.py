"""The draft: its network, its initial weights, its checkpoint files, and what it takes from the target."""
