"""A real Prometheus that scrapes real processes of ours as the chart's PodMonitors ask for it."""
