"""The real KEDA scales a speculator on a real cluster, as the samples of ``docs/samples/autoscaling`` ask for it."""
