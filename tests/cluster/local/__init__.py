"""The local cluster: Kubernetes on this machine, without a container engine."""
