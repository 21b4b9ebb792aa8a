"""For all tests: what a slow machine needs of time is no failure, and values that say so are frozen."""

import signal

from hypothesis import HealthCheck, settings

import pact.values

settings.register_profile("pact", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("pact")
pact.values.FROZEN = True
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # started in the background: what is started here would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)
