"""Activations that other tools have cached, taken in as runs. One module reads the files, one makes rows of them, one does the job."""
