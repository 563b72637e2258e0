"""Our evaluation and data beside those of open-instruct, item by item (docs/crosscheck.md)."""
