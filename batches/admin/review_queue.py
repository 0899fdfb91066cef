"""The page where images are reviewed."""
