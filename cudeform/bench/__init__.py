"""``python -m cudeform bench``: what is timed, against whom, and how."""
