"""Installs the guard into SDKs, processes and programs, and uninstalls it."""
