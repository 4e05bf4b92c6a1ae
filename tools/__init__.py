"""The repository's own tools: set-up, notebooks, the address. The wheel leaves them out."""
