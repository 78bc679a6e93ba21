"""What a config may say, where configs come from, and how they are composed and checked."""
