"""Programs that measure what an export and an engine cost, and how often an engine is right about a drawn world."""
