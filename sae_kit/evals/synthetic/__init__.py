"""What eval=synthetic_activations is made of."""
