"""Reads one speculator's records from its store into a :class:`~aurora_operator.observe.observed.StoreView`."""
