"""Statistics of a data set, and problems in it."""
