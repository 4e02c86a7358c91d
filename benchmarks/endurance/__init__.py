"""Long runs: training under faults, its memory over an hour, and text larger than memory."""
