"""Inputs that try to break the readers: seeded mutations of every kind of file, each judged in a watched process."""
