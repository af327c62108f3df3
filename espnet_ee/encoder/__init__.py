"""Encoders that compute one segment at a time and can stop after any of them."""
