"""Attention maps: the cross-attention weights of each head for a detection."""
