"""Figures, one file per kind; functions draw computed results."""
