"""Every write of a publication."""
