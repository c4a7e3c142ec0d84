import sys

from clothing_model.commands.cli import main

sys.exit(main())
