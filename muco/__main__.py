"""`python -m muco`, for launchers that start a module."""

from muco.cli import main

main()
