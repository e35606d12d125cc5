"""What every process of ours is made of: its loop, signals and log, figures and stalls, how it writes and waits."""
