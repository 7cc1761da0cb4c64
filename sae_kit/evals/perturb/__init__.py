"""Perturbation experiments: what is changed where, along which path, and what responds."""
