"""Networks up to the size of a brain."""
