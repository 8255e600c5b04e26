"""``python -m aurora_runtime.serving.agent``."""

import sys

from aurora_runtime.serving.agent.main import main

sys.exit(main())
