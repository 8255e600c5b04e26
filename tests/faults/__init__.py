"""``make e2e-faults``: what fails on a real cluster under constant traffic, and how long each failure lasts."""
