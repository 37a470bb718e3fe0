"""`tinker-guard report`: sums up the guard's actions from exported spans.

Depends on the names of spans and attributes, and not on the guard itself.
"""
