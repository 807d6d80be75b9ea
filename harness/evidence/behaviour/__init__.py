"""What a model does when it is asked: the only evidence that uses torch, and only then."""
