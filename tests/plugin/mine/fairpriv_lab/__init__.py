"""Parts of a lab's own: the folder above is given by --config-dir, or the wheel is installed."""
