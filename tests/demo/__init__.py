"""``make demo``: the whole loop on this machine, told in lines."""
