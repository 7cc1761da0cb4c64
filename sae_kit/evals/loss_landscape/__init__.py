"""What eval=degeneracy and eval=learning_coefficient are made of."""
