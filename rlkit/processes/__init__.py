"""Processes that users' code runs in: started afresh, limited in memory and time, and ended for certain."""
