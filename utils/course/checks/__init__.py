"""The checks of the exercises, one module for each chapter. A check prints one of three things and never raises:

not attempted yet, right and why it matters, or not yet and the mistake that answers of this kind usually make.
"""
