"""Speed and memory against what people use today, side by side in one run."""
