"""What `experiments/compare.py` does, in the order of the data: reading, table, columns, text, style, figures, page."""
