"""Training: setup of a run, epochs and steps, matching and losses, and the files of a run."""
