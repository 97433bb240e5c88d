"""Request traces that people have (Mooncake, Azure, BurstGPT, ShareGPT, …), read as cases."""
