"""Decides, sends and times: everything between the parameters of a run and its report."""
