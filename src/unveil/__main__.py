"""`python -m unveil` is the command `unveil`."""

from __future__ import annotations

import sys

from .cli import main

sys.exit(main())
