"""Own code for torch on a CPU: nothing yet, torch's table serves."""
