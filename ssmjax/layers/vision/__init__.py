"""What image models are made of beside their mixers."""
