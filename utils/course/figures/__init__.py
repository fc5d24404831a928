"""The course's figures, one module for each chapter; a reader may skip how they are made."""
