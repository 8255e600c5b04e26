"""A complete Aurora on a real cluster, as the demo and the end-to-end tests use it: image, chart, store, speculator."""
