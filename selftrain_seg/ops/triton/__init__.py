"""Triton kernels of the operators, for CUDA.

A program takes a run of pixels and walks through their classes: no tile of classes, so any number of them costs what it
reads, and nothing is exchanged between threads before a final sum. ``launch`` has a function for each operator.
"""
