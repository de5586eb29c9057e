"""``python -m chroma_manager.cli`` is the command ``chroma-manager``."""

import sys

from chroma_manager.cli.arguments import main

sys.exit(main())
