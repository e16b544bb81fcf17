"""Packing the images of a data set into tar files."""
