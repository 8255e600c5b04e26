"""Real traffic: prompts of two narrow domains and a load driver that counts every failure."""
