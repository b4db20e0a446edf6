"""Training with the released recipe, on Lightning."""
