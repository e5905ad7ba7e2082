"""The tests, and the modules that they share; those are imported by their bare names (``from cluster import Cluster``).

That the folder is a package too is for what is run from the checkout's top level: ``python -m tests.NAME``.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
