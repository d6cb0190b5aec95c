"""Pages: Jinja2 templates and what fills them."""
