"""The study's command: ``python -m slam_edu.toy.study``."""

import sys

from slam_edu.toy.study.command import main

if __name__ == "__main__":
    sys.exit(main())
