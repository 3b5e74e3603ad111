"""Steering: directions with their usual strengths, saved vectors and their files, and what a request to steer means in the home."""
