"""Measures of a trained model, as in the paper."""
