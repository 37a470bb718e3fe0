"""The commands `demo` and `gateway`: the guard at work against the local gateway.

Needs the extra `demo`; nothing outside this package and `cli` imports it.
"""
