"""The pack's version, as in pyproject.toml; a hygiene test compares the two."""

VERSION = "0.1.0"
