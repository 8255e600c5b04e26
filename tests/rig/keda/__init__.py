"""A real KEDA for tests: the operator and the API server of external metrics, built from KEDA's own Go module."""
