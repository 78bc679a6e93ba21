"""Language models from the hub, a folder or a package, and how they are trained."""
