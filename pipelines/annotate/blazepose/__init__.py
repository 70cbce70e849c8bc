"""BlazePose, the built-in pose estimator: its networks, and the program that converted them."""
