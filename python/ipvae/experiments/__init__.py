"""What `ipvae` runs as a whole: the demo, and what it is timed against."""
