"""What measures the harness itself: gauntlet, goldens, benchmark, environment check."""
