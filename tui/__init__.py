"""The replay debugger on a terminal (Textual)."""
