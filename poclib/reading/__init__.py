"""A report to frames and numbers. Needs no machine and writes no sentence."""
