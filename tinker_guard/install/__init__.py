"""How the guard gets into SDKs, processes and programs, and out again."""
