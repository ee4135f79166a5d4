"""What the server keeps and sends, and whom it asks."""
