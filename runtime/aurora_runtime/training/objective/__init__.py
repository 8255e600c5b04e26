"""The loss at one position: the target's distribution, the loss formulas and the draft's head."""
