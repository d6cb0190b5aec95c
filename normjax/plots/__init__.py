"""Figures, one file per kind; every function takes computed results and computes nothing."""
