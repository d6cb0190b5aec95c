"""Predict the test error: published measures and their rankings, Rademacher complexity and the
terms of eq. 4, and the linear network of section 3.1.1."""
