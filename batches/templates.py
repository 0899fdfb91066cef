"""Batches with placeholders, kept to be made again."""
