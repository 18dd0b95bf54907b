"""What all layers share: norms, gates, padding, stacks, checks."""
