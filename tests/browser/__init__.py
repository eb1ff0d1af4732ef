"""Tests in a real browser; skipped, and seen to be, where Chromium, Playwright or JupyterLab are missing."""
