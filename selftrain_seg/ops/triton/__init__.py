"""Triton kernels of the operators, for CUDA.

A program processes a run of pixels and loops over their classes. It has no tile of classes, so its cost is proportional
to the data it reads, and threads exchange nothing before a final sum. ``launch`` has a function for each operator.
"""
