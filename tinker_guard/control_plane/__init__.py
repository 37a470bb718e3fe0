"""Who is asked whether a job runs, and how all requests share one answer."""
