"""What runs survive: kills, full disks, inputs that change. `python -m tools.faults` counts it."""
