"""A checkpoint behind HTTP: requests that come and go, spoken together."""
