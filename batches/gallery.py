"""Which images a filter means."""
