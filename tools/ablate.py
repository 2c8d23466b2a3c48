"""Run a grid of recipes: `python tools/ablate.py GRID.yaml`, the same as `muco ablate GRID.yaml`."""

import sys

from muco.commands.main import main

if __name__ == "__main__":
    main(["ablate", *sys.argv[1:]])
