"""What a recording implies: the state in which its calls began, how long steps take, how memory grows."""
