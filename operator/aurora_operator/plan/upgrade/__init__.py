"""What an upgrade of the operator means for the inference pods, and how the status tells of it. Pure."""
