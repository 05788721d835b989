"""Does a written graph give the right scores? Verification in a fresh process, comparison with logged requests, sample requests."""
