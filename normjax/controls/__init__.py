"""Is the line real? `normjax.explain_line` and what it is made of."""
