"""Sweeps on Ray: teacher and evaluation actors, Tune's search with Optuna's studies. Nothing else
imports either.
"""

import os

# Ray reads this when it is imported. A straggling thread must not start a Ray of its own after the
# sweep has let go of its own: it would outlive the process.
os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
