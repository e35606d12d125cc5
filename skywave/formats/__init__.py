"""What both sides share: batches, frames, messages, topics, ranges of numbers. Imports nothing of ours but errors."""
