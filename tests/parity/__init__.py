"""Compares the methods with what their authors' released code gave; see ``vectors/SOURCES.md``."""
