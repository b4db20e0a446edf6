"""What others' code and files need to be used here."""
