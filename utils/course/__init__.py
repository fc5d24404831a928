"""What only the notebooks need: the first cell, exercises with their checks, what is watched while a model learns."""
