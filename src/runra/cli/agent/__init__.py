"""`runra agent run | replay` and `runra agents`: coding agents from the terminal."""
