"""What is given and how it is spoken, one table per language; a row is a sentence someone could have written."""
