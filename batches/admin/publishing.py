"""Channel accounts and publications."""
