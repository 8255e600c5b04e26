"""A complete Aurora on a real cluster (image, chart, store, speculator), for the demo and the end-to-end tests."""
