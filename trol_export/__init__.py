"""From an official TroL checkpoint to one engine.plan: the pipeline and the `trol-export` command."""
