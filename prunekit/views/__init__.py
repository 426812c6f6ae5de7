"""What a component may see of a forward pass, and what a user gets back of it."""
