"""The user's videos: finding their files, reading their headers, decoding their frames."""
