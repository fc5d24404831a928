"""The widgets: the story demo, and pictures with controls."""
