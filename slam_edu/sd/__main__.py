"""``python -m slam_edu.sd``, the command ``slam-edu``."""

import sys

from slam_edu.sd.cli import main

sys.exit(main())
