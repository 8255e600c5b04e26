"""A Hypothesis profile without a deadline, because the time of one example means nothing on a shared machine."""

from hypothesis import settings

settings.register_profile("serving", deadline=None, max_examples=40)
settings.load_profile("serving")
