"""The study's command: ``python -m slam_edu.digits.students``."""

import sys

from slam_edu.digits.students.command import main

if __name__ == "__main__":
    sys.exit(main())
