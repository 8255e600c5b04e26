"""Which speculator a root belongs to, who may write there, and how the root is deleted."""
