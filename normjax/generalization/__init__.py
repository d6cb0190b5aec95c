"""Measures of generalization and how well they rank networks; Rademacher complexity and eq. 4;
the linear network of section 3.1.1."""
