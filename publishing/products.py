"""What can be published where: the product types of each channel."""
