"""Does what a plan says. Every action is idempotent."""
