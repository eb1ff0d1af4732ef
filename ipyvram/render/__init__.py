"""Reports as text, HTML and MIME bundles; sees only `report` and `units`."""
