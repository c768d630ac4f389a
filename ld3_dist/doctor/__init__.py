"""`ld3-dist doctor`: everything an experiment needs, checked before anything runs; nothing is
written or downloaded.
"""

from .checklist import print_checks
from .checks import Check, examine

__all__ = ["Check", "examine", "print_checks"]
