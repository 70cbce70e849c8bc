"""One reader for each format of poses that people have; `recognise.py` chooses the reader by the content of a file."""
