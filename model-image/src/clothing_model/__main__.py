"""Entry point of `python -m clothing_model`."""

from __future__ import annotations

import sys

from clothing_model.commands.cli import main

sys.exit(main())
