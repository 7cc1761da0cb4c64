"""What eval=feature_evolution is made of."""
