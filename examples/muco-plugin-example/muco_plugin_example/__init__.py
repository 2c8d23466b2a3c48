"""A pooler and a loss for muco."""
