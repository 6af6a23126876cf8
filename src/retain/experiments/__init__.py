"""Many runs: comparisons of methods, sweeps of settings, and their tables and plots."""
