"""What predicts the test error: published measures and how well they rank networks, Rademacher
complexity and the terms of eq. 4, and the linear network of section 3.1.1."""
