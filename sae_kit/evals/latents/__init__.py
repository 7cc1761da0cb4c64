"""What eval=dashboard is made of."""
