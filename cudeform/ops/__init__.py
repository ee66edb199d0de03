"""The operators: what a caller passes, what is checked, what is computed where."""
