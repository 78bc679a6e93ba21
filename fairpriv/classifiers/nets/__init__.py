"""Networks, the training of one network or of a pool, and encoders of texts and images."""
