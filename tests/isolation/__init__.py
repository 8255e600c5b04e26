"""What a speculator, its store or another operator must not do to others: attacks on a real cluster."""
