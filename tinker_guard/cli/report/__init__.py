"""`tinker-guard report`: what the guard did, out of exported spans.

Knows the names of spans and attributes, and nothing of the guard that writes them.
"""
