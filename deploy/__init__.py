"""How this project runs in a cloud: image, templates, launch bodies, infrastructure. docs/operations.md tells how to use it."""
