"""`python -m ld3_dist.cli`: the same as the command `ld3-dist`."""

from .app import main

main()
