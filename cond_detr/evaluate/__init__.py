"""COCO's metrics of a model on a data set."""
