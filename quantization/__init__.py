"""Weights in fewer bits, held and multiplied as the trainer does it."""
