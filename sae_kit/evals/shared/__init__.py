"""What evaluations of several papers use."""
