"""One reader for each supported format of poses; `recognise.py` chooses the reader by the content of a file."""
