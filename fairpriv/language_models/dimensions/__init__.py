"""What a dimension is made of, and its rates of awareness."""
