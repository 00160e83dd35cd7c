"""``python -m arlm.cli``: the ``arlm`` command where no script is installed."""

import sys

from .main import main

sys.exit(main())
