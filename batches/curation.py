"""What an owner does with images: save, tag, review, delete."""
