"""What eval=stable_regions is made of."""
