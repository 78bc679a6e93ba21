"""Language models: how they are tuned and edited, and what is measured of them."""
