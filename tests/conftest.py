"""What every test gets: pytester for tests of fixtures, and a check that nothing is left behind."""

import guest_coverage

pytest_plugins = ["pytester", "leaks"]

guest_coverage.measure()
