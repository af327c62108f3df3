"""A model on disk: configurations, checkpoints, packages, exports."""
