"""Networks, how one of them or a pool of them is trained, and encoders that read texts and images."""
