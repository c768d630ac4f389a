"""`ld3-dist doctor`: check everything an experiment needs, before anything runs."""

from .check import Check
from .checklist import checks_as_json, print_checks
from .checks import examine

__all__ = ["Check", "checks_as_json", "examine", "print_checks"]
