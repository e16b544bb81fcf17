"""Conversion of weights between the formats of different implementations."""
