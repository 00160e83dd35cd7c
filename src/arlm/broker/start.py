"""The ``__main__`` of the archive."""

from arlm.broker.__main__ import main

main()
