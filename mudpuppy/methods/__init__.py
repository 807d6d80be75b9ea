"""Training methods, one file a family; `mudpuppy.engine` picks by `TrainingConfig.method`."""
