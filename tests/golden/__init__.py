"""Outputs of the official TroL code, and the seeded checkpoints they were computed from."""
