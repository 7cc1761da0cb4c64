"""What eval=acdc is made of."""
