"""`python -m runra.cli`: the command line without its script."""

from runra.cli import main

main()
