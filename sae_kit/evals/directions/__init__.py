"""What eval=sensitive_directions is made of."""
