"""Several operators beside each other: replicas, shards, installations and versions, and many speculators."""
