"""The demonstration on a photograph: ``python -m cudeform demo``."""
