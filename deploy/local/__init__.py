"""Everything on one machine: embedded servers, the model and our own processes, as children of
one launcher.
"""
