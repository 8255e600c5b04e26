"""OpenTelemetry traces: one trace for each draft version, from its registration to the end of its roll."""
