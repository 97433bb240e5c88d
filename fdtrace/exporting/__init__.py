"""`fdtrace export`: recordings in the formats of others."""
