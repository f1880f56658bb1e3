"""Programs that measure what an export and an engine cost, as ratios taken in one run."""
