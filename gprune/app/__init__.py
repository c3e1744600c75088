"""The web page: a user's image, a question, and up to four methods side by side.

Needs Gradio, which ``pip install 'gprune[app]'`` installs; only the command imports this package.
"""

from gprune.app.server import launch, temporary_files

__all__ = ["launch", "temporary_files"]
