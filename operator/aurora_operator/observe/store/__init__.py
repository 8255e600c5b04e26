"""Reads one speculator's records from its store, seldom while nothing is under way."""
