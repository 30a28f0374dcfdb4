"""What holds for all tests: property tests draw the same examples each time, and have no clock of their own."""

from hypothesis import settings

settings.register_profile("offbeat", derandomize=True, deadline=None, max_examples=50)
settings.load_profile("offbeat")
