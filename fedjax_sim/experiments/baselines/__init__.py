"""All methods on equal terms."""
