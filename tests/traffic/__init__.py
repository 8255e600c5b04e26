"""Client traffic: prompts of three narrow domains, and a load driver that counts every failed request."""
