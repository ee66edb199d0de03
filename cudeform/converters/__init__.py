"""From the layouts and the units of other libraries to ours, and back."""
