"""`python -m tinker_guard` is the command `tinker-guard`."""

from tinker_guard.cli import main

main()
