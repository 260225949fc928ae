"""One file per language; a file added here is a language added."""
