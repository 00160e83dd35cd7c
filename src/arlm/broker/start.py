"""The ``__main__`` of the archive."""

import sys

if sys.version_info < (3, 10):  # noqa: UP036 - whatever python3 is there
    sys.exit(f"arlm's broker needs Python 3.10 or later, and {sys.executable} is {sys.version.split()[0]}")

# The archive's packages would import others that happen to be installed here, of whatever version.
sys.path[:] = [path for path in sys.path if not path.endswith(("site-packages", "dist-packages"))]

from arlm.broker.__main__ import main  # noqa: E402

main()
