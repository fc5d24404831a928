"""The course's drawings, one module for each chapter; a reader may skip how they are made."""

from utils.course.drawings.model import the_model

__all__ = ["the_model"]
