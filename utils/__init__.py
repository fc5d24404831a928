"""Kimi K2 from scratch: the stable code behind the course, one module per idea."""
