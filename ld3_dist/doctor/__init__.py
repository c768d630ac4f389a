"""`ld3-dist doctor`: everything an experiment needs, checked before anything runs; nothing is written or downloaded."""

from .checks import Check, examine
from .page import print_checks

__all__ = ["Check", "examine", "print_checks"]
