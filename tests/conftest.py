"""What every test gets: pytester for tests of fixtures, and a check that nothing is left behind."""

import signal

import pytest

import guest_coverage

pytest.register_assert_rewrite("arlm.testing")  # the suites of arlm.testing show values when an assert fails
pytest_plugins = ["pytester", "leaks", "docker_engine"]

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # started in the background by a shell: Ctrl-C is tested all the same
    signal.signal(signal.SIGINT, signal.default_int_handler)

guest_coverage.measure()
