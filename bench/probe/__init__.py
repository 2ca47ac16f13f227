"""Put on PYTHONPATH of a process, this folder makes it tell the longest stall of its loop."""
