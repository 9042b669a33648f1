"""Engines of TensorRT: networks, builds and timings for `benchmarks/tensorrt_engines.py`."""
