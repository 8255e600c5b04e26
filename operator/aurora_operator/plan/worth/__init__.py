"""What training costs, what the draft saves, and whether ``training.suspendWhen`` suspends training for that."""
