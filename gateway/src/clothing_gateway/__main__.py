"""``python -m clothing_gateway`` is the command ``clothing-gateway``."""

import sys

from clothing_gateway.commands.cli import main

sys.exit(main())
