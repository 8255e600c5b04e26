"""``make e2e-faults``: causes faults on a real cluster under constant traffic, and measures how long each one lasts."""
