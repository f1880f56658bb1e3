"""A drawn world with known answers: pictures of shapes, words, numbers and bar charts, and questions about them."""
