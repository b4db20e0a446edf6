"""The models and their configurations: a file a family, listed in `registry`."""
