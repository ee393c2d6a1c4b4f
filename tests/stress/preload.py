"""What every process of a trial needs, imported once. Nothing here starts JAX."""
