"""`ld3-dist doctor`: check everything an experiment needs, before anything runs."""

from .check import Check
from .checklist import print_checks
from .checks import examine

__all__ = ["Check", "examine", "print_checks"]
