"""Images as one streamed ZIP."""
