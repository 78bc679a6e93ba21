"""Results of cells on disk, their identity, and the report that compares them."""
