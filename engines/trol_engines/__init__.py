"""Targets: from a role's graph to what a device runs. Here: the CPU (`cpu_model`)."""
