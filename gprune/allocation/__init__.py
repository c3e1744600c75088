"""Functions for ``keep``: budgets that depend on an image's content or on its thumbnail."""
