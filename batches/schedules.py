"""Recurring batches: when they are due, and their runs."""
