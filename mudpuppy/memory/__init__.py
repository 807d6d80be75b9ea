"""Train models that are larger than the device."""
