"""``python -m sb3_reinforce`` is ``sb3-reinforce``."""

import sys

from sb3_reinforce.zoo.cli import main

if __name__ == "__main__":
    sys.exit(main())
