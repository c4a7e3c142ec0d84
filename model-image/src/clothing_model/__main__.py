import sys

from clothing_model.cli import main

sys.exit(main())
