"""The command that repeats the step of a training whose loss was not finite."""
