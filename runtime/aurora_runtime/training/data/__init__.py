"""From shards to batches: reading, prefetching, examples, replay and the held-out set."""
