"""Files of weights: checkpoints of this package and of other implementations."""
