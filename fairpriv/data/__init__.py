"""What both wings read: files and where they come from, texts, and pretrained models."""
