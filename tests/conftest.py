"""For all tests: what a slow machine needs of time is no failure."""

from hypothesis import HealthCheck, settings

settings.register_profile("pact", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("pact")
