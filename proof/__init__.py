"""What proves the guard beyond its tests: hostile schedules, soaks, mutants and fuzzing."""
