"""Everything that runs inside Aurora's pods: server, agent, trainer and validator."""
