"""What became of a user's batches, in figures."""
