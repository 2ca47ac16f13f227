"""Model servers to run beside Fireside: a scripted one for tests and benchmarks, a small real one
for play.
"""
