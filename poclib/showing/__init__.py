"""Numbers to words, charts and pages."""
