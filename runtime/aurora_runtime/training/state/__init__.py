"""What outlives the trainer's process: its saved state, the shard ledger, and deletion of old objects."""
