"""How many CTAs of the Hopper kernels are on this GPU at once, by the size of their clusters; a second.

    python benchmarks/hopper/occupancy.py      # {"1": 132, "2": 132, "4": 120, "8": 120, "16": 112}

A kernel whose CTAs wait for each other must not have more of them than this.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from jaxrnn.recurrence.kernels.hopper import residency as hopper_residency
from jaxrnn.recurrence.kernels.hopper.tiles import CLUSTERS

try:
    print(json.dumps(dict(zip(CLUSTERS, hopper_residency.asked(0), strict=True))))
except RuntimeError as error:
    sys.exit(f"error: {error}")
