"""Everything that runs inside Aurora's pods: server, agent, trainer, validator, and the store they share."""
