"""Detecting objects in images."""
