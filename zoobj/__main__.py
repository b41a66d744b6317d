"""``python -m zoobj``."""

import sys

from zoobj.cli import main

sys.exit(main())
