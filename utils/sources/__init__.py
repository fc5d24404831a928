"""Texts from wherever a person has them: files of many kinds, folders, and the hub."""
