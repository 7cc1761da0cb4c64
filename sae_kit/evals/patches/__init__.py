"""What eval=patching is made of."""
