"""What eval=interaction_basis is made of."""
