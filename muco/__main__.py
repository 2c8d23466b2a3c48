"""`python -m muco`, for launchers that start a module."""

from muco.commands.main import main

main()
