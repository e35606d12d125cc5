"""What every service of ours is made of: loop, signals, watchdog, figures, stalls."""
