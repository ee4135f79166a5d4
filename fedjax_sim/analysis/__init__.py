"""What is made of results: pictures, attributions, folders."""
