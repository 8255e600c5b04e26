"""How one batch changes the weights: recipe, session, moving average, and ranks on several GPUs."""
