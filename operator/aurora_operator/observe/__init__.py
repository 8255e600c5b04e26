"""Observation: reads one speculator's resource, children, agents and store records into one frozen ``Observed``."""
