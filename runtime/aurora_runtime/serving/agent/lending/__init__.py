"""How a pod leaves its Service, lends its engine to a measurement, and returns with its current draft."""
