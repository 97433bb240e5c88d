"""What `import fdtrace` offers to programs and notebooks; `fdtrace/__init__.py` names it, docs/python.md shows it."""
