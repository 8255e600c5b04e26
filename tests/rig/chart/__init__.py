"""The chart as Helm renders it, and as a user pulls it from a registry. Needs no cluster."""
