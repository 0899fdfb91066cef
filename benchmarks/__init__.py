"""What the product costs and how fast it is, each figure against a bound: `make bench`."""
