"""Newleaf: train a small GPT on your own text."""
