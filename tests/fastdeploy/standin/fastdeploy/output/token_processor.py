"""What the engine's plugin gives back."""


class TokenProcessor:
    pass
