"""Text: tokenizers and the reading of documents."""
