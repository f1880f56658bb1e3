"""Targets: from a role's graph to what a device runs, on a CPU (`cpu_model`) or on NVIDIA GPUs (`plan_builder`)."""
