"""One physical disk, or an image of one, from found to sealed."""
