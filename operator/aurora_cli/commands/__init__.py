"""The commands, each a thin shell: read the cluster, ask the pure core, print."""
