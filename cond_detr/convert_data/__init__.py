"""The command that writes a data set of any known format in COCO's."""
