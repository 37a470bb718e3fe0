"""Measures the guard against its peers: `python -m benchmarks`, or one module of this package.

Each module runs alone (`python -m benchmarks.overhead`) and prints what it measured; the whole
package ends with the table of goals. Nothing in here is part of the installed library.
"""
