"""``make demo``: the whole loop on this machine, with one line of progress for each thing that happens."""
