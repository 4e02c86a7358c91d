"""Number of CTAs of the Hopper kernels that are resident on this GPU, by the size of their clusters.

    python -m benchmarks.hopper.occupancy      # {"1": 132, "2": 132, "4": 120, "8": 120, "16": 112}

It takes a second. A kernel whose CTAs wait for each other must not have more CTAs than this.
"""

import json
import sys

from jaxrnn.recurrence.kernels.hopper import residency
from jaxrnn.recurrence.kernels.hopper.tiles import CLUSTERS

try:
    print(json.dumps(dict(zip(CLUSTERS, residency.asked(0), strict=True))))
except RuntimeError as error:
    sys.exit(f"error: {error}")
