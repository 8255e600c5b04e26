"""Hypothesis on a shared machine: what an example costs says nothing here."""

from hypothesis import settings

settings.register_profile("serving", deadline=None, max_examples=40)
settings.load_profile("serving")
