"""Questions answered by the base and the tuned model side by side, and scored."""
