"""Parts of kills.py: the project, the servers, a run and its phases, and the checks after a kill."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
# The servers are those of the tests, which start them by the scripts of docker/.
sys.path.append(str(ROOT / "tests"))
